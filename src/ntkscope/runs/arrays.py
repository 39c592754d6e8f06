"""Means of random arrays that grow: a sum, a sum of squares, and a few groups for what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Small
from ntkscope.results import Estimate
from ntkscope.results.groups import Groups

__all__ = ["ArrayMeans", "ArrayRun", "ArraySamples"]

#: ``draw(start, stop)``: independent unbiased estimates start..stop-1 of an array, (stop - start, *shape).
ArraySamples = Callable[[int, int], NDArray[np.float64]]

# Groups cost g arrays of memory, and tell the error of a norm with g - 2 degrees of freedom.
_GROUPS = 32
_FEWEST_GROUPS = 8
_GROUP_ENTRIES = 1 << 24
# Numbers that are drawn at once.
_ROOM = 1 << 24
# Excess kurtosis of the heaviest quadratic form.
_LARGEST_KURTOSIS = 12.0
# Rounding of a sum, in units of the products' own.
_ROUNDING = 4.0


@dataclass(frozen=True, eq=False)
class ArrayMeans:
    """What is known of an array.

    Attributes:
        values: The mean.
        stderr: Of every entry; ``None`` for a single sample.
        degrees_of_freedom: Of every entry.
        groups: For what is made of the whole.
    """

    values: Small
    stderr: Small | None
    degrees_of_freedom: Small | None
    groups: Groups


class ArrayRun:
    """The mean of independent unbiased estimates of an array.

    Args:
        draw: Gives the estimates.
        shape: Of one.
        cost: Products that one takes.
        epsilon: Relative rounding error of the products.
        form: Makes of what is known the numbers that a tolerance is for.
        is_kernel: Whether they are symmetric, positive semidefinite matrices.
        first_look: Estimates before which no error bar ends a run.
    """

    #: Its error falls as 1/√m, and no faster.
    stride = 4.0

    def __init__(
        self,
        draw: ArraySamples,
        shape: tuple[int, ...],
        *,
        cost: int,
        epsilon: float,
        form: Callable[[ArrayMeans], list[Estimate]],
        is_kernel: bool,
        first_look: int = 8,
    ) -> None:
        self._draw, self._form, self._epsilon = draw, form, epsilon
        self._shape, self._is_kernel = shape, is_kernel
        entries = int(np.prod(shape))
        groups = max(_FEWEST_GROUPS, min(_GROUPS, _GROUP_ENTRIES // max(entries, 1)))
        self._step = max(1, _ROOM // max(entries, 1))
        self._count = 0
        self._squares = np.zeros(entries)
        self._sums = np.zeros((groups, entries))
        self._counts = np.zeros(groups)
        self.quantum = cost
        self.minimum = 2 * cost
        self.first_look = first_look * cost

    def grow(self, products: int) -> None:
        """Draw until ``products`` have run in all."""
        wanted = products // self.quantum
        while self._count < wanted:
            stop = min(wanted, self._count + self._step)
            fresh = self._draw(self._count, stop).reshape(stop - self._count, -1)
            place = np.arange(self._count, stop) % len(self._counts)
            for group in np.unique(place):
                chosen = place == group
                self._sums[group] += fresh[chosen].sum(axis=0)
                self._counts[group] += chosen.sum()
            self._squares += np.einsum("ke,ke->e", fresh, fresh)
            self._count = stop

    def result(self) -> list[Estimate]:
        """The numbers that a tolerance is for; a ValueError before two estimates are known."""
        return self._form(self.means())

    def means(self) -> ArrayMeans:
        """What is known so far.

        Raises:
            ValueError: If fewer than two estimates were drawn.
        """
        count = self._count
        if count < 2:
            raise ValueError(f"an error bar needs two probes; spend {self.minimum} products or more")
        mean = self._sums.sum(axis=0) / count
        variance = np.maximum(self._squares / count - mean**2, 0) * (count / (count - 1))
        floor = _ROUNDING * self._epsilon * np.abs(mean)
        stderr = np.maximum(np.sqrt(variance / count), floor)
        used = min(count, len(self._counts))
        return ArrayMeans(
            mean.reshape(self._shape),
            stderr.reshape(self._shape),
            self._freedom(mean.reshape(self._shape), variance.reshape(self._shape)),
            Groups(self._sums[:used], self._counts[:used]),
        )

    def _freedom(self, mean: Small, variance: Small) -> Small:
        """As :func:`ntkscope.runs.statistics.effective_degrees_of_freedom`, entry by entry.

        An entry of a kernel is (P[a, a] P[a', a'])^½ large, whatever its mean.
        """
        level = np.abs(mean)
        if self._is_kernel:
            size = np.sqrt(np.abs(np.diagonal(mean)))
            level = np.outer(size, size)
        with np.errstate(invalid="ignore", divide="ignore"):
            kurtosis = np.nan_to_num(12 * variance / level**2, posinf=_LARGEST_KURTOSIS)
        kurtosis = np.minimum(kurtosis, _LARGEST_KURTOSIS)
        freedom: Small = 2 / (kurtosis / self._count + 2 / (self._count - 1))
        return freedom
