"""Means of independent unbiased samples: Hutchinson's estimator and its relatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Map
from ntkscope.results import Estimate
from ntkscope.runs.moments import ROUNDING
from ntkscope.runs.statistics import summarise_sums

__all__ = ["Draw", "HutchinsonRun", "factor_draw", "two_sided_draw"]

#: ``draw(start, stop)``: samples start..stop-1 of an endless sequence, shape (stop - start,), or in
#: independent parts that add up to the samples, shape (stop - start, parts).
Draw = Callable[[int, int], NDArray[np.float64]]


class HutchinsonRun:
    """The mean of independent, unbiased samples that are quadratic forms, one product each.

    E[ωᵀKω] = tr K for independent signs ω (Hutchinson 1990); the same holds for
    ‖Jᵀω‖², for ‖Ju‖², and for sums of such over the samples of a batch.

    Args:
        draw: Gives the samples.
        method: Name of the method.
        quantity: What the samples estimate.
        seed: The seed of the samples.
        epsilon: Relative rounding error of a sample.
        note: What a reader should know.
        products_per_sample: What one sample costs, in products.
    """

    #: Its error falls as 1/√m, and no faster.
    stride = 4.0

    def __init__(
        self,
        draw: Draw,
        *,
        method: str,
        quantity: str = "trace",
        seed: int | None = None,
        epsilon: float = 2.0**-52,
        note: str = "",
        products_per_sample: int = 1,
    ) -> None:
        self._draw = draw
        self._method = method
        self._quantity = quantity
        self._seed = seed
        self._epsilon = epsilon
        self._note = note
        self.minimum = self.quantum = products_per_sample
        self._samples = np.zeros((0, 1))

    def grow(self, products: int) -> None:
        """Draw until ``products`` have run in all."""
        known, wanted = len(self._samples), products // self.quantum
        if wanted > known:
            fresh = np.asarray(self._draw(known, wanted), dtype=np.float64).reshape(wanted - known, -1)
            self._samples = np.concatenate([self._samples, fresh]) if known else fresh

    def result(self) -> Estimate:
        """Mean ± √(Σ_b v_b/k) with the variances v_b of the parts, and their degrees of freedom.

        The error of samples that are all 0 is not known: a kernel may be small
        where the probes happened not to look.

        Raises:
            ValueError: If nothing was drawn yet.
        """
        summary = summarise_sums(self._samples)
        stderr = summary.stderr
        if stderr is not None:
            stderr = max(stderr, ROUNDING * self._epsilon * abs(summary.value)) or None
        return Estimate(
            summary.value,
            stderr,
            self._method,
            self._quantity,
            samples=self._samples.sum(axis=1),
            degrees_of_freedom=summary.degrees_of_freedom,
            seed=self._seed,
            note=self._note,
        )


def two_sided_draw(operator: Map, *, seed: int, stream: int = 0) -> Draw:
    """Samples ωᵀKω, one product each, of a map of shape (n, n)."""

    def draw(start: int, stop: int) -> NDArray[np.float64]:
        probes = operator.probes(start, stop, seed=seed, stream=stream)
        return operator.inner(probes, operator.apply(probes))

    return draw


def factor_draw(factor: Map, *, seed: int, stream: int = 0) -> Draw:
    """Samples ‖Mω‖² of a factor M with MᵀM = K, or with tr MᵀM = tr K.

    With M = Jᵀ this is the RHutch of arXiv 2511.10796 (reverse mode alone), with
    M = J its FHutch (forward mode alone).
    """

    def draw(start: int, stop: int) -> NDArray[np.float64]:
        block = factor.apply(factor.probes(start, stop, seed=seed, stream=stream))
        return factor.inner(block, block)

    return draw
