"""Means of random arrays in a few groups: inner products without bias, and errors of what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Groups", "Statistic", "jackknifed", "products"]

Small = NDArray[np.float64]

#: A number made of some moments, each of shape (...): (tr P)² and ‖P‖² to an effective rank.
Statistic = Callable[..., Small]


@dataclass(frozen=True, eq=False)
class Groups:
    """Independent unbiased estimates of one array, added up in g groups; estimate i is in group i mod g.

    Attributes:
        sums: Shape (g, entries).
        counts: How many estimates each holds, shape (g,).
    """

    sums: Small
    counts: Small

    def merged(self, count: int) -> Groups:
        """The same in so many groups, where these are more."""
        if len(self.counts) <= count:
            return self
        place = np.arange(len(self.counts)) % count
        sums = np.zeros((count, self.sums.shape[1]))
        np.add.at(sums, place, self.sums)
        return Groups(sums, np.bincount(place, self.counts, count).astype(np.float64).astype(np.float64))


def products(a: Groups, b: Groups) -> Small:
    """⟨A, B⟩ of the means of two arrays, without bias, of all groups and without each: shape (1 + g,).

    Only pairs of different groups are taken, whose estimates share no probe. It is nan where there are
    no two.

    Args:
        a: Of one array.
        b: Of another one, in as many groups.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Small = _pairs(a.sums @ b.sums.T) / _pairs(np.outer(a.counts, b.counts))
    return found


def _pairs(matrix: Small) -> Small:
    """Σ over i ≠ j of all, and of all without one: shape (1 + g,)."""
    off = matrix - np.diag(np.diagonal(matrix))
    total = off.sum()
    return np.concatenate([[total], total - off.sum(axis=0) - off.sum(axis=1)])


def jackknifed(
    statistic: Statistic, moments: Sequence[Small], degrees: Sequence[int]
) -> tuple[float, float | None, float]:
    """A function of moments, each of all groups and without each, less its bias, and its standard error.

    Args:
        statistic: Takes the moments to the number, entry by entry.
        moments: Shapes (1 + g,).
        degrees: How many of the estimates each is a product of.

    Returns:
        The number, its error (``None`` where fewer than three groups tell it), and degrees of freedom:
        those of the moment with the heaviest tails, see
        :func:`ntkscope.runs.statistics.effective_degrees_of_freedom`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        found = statistic(*moments)
    left = found[1:]
    count = len(left)
    if count < 3 or not bool(np.isfinite(found).all()):
        return float(found[0]), None, math.inf
    # 12 variance/mean² of quadratic forms, of which the heaviest has 12.
    kurtosis = max(
        min(_LARGEST_KURTOSIS, 12 * count * _variance(moment) / (degree * moment[0]) ** 2)
        for moment, degree in zip(moments, degrees, strict=True)
    )
    value = count * found[0] - (count - 1) * left.mean()
    return float(value), math.sqrt(_variance(found)), 2 / (kurtosis / count + 2 / (count - 1))


def _variance(found: Small) -> float:
    """The jackknife's, of a number of all groups and without each."""
    left = found[1:]
    return float((len(left) - 1) / len(left) * np.sum((left - left.mean()) ** 2))


_LARGEST_KURTOSIS = 12.0
