"""Largest eigenvalues and their vectors: Rayleigh-Ritz in a block Krylov space, with residuals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Block, Map
from ntkscope.results import Cost
from ntkscope.runs.grams import Grams
from ntkscope.runs.moments import ROUNDING
from ntkscope.runs.orthonormal import extend_basis

__all__ = ["Eigenpairs", "krylov_eigenpairs"]

Small = NDArray[np.float64]

#: Of the probes that the Krylov space grows from; estimates of the same seed use low streams.
_STREAM = 40


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The k largest eigenvalues of a kernel with their eigenvectors, and how far to trust them.

    Attributes:
        values: Largest first, shape (k,).
        vectors: Orthonormal columns, shape (n, k), in the kernel's framework.
        residuals: ‖Kv - λv‖ of every pair, shape (k,): an eigenvalue lies that near for certain.
        errors: What each value may be off by: the residual, or residual²/gap where the gap to the
            next value tells more, and rounding; 0 for exact values.
        method: ``"exact"`` or ``"krylov"``.
        converged: Whether all errors are within the tolerance.
        cost: What was spent.
    """

    values: Small
    vectors: Any = field(repr=False)
    residuals: Small
    errors: Small
    method: str
    converged: bool
    cost: Cost = field(default_factory=Cost)

    def __len__(self) -> int:
        return len(self.values)


def krylov_eigenpairs(
    operator: Map, count: int, *, rtol: float, extra: int = 2, most: int, columns: int, seed: int = 0
) -> Eigenpairs:
    """The largest eigenpairs of a positive semidefinite map by randomized block Krylov iteration.

    Rayleigh-Ritz in span{Ω, KΩ, K²Ω, ...} for b random columns Ω (Musco and Musco 2015,
    arXiv 1504.05477). Every step is one product with a whole block; the basis is orthonormal to
    rounding, and residuals need no product beyond those. A space that would grow beyond ``columns``
    is restarted from its best Ritz vectors. With b ≥ k no value is missed, however often it occurs.

    Args:
        operator: K, shape (n, n).
        count: k, from 1 to n.
        rtol: How far, relative to each value, its error may be.
        extra: b - k, how many columns more than pairs advance together.
        most: Products at most.
        columns: Of the basis at most; twice as many vectors of n numbers are kept.
        seed: Of Ω.

    Returns:
        The pairs; fewer than ``count`` where the kernel has a smaller rank.
    """
    block = min(count + extra, operator.shape[0])
    grams, found = Grams(operator), _Ritz.none()
    ahead: Block = operator.probes(0, block, seed=seed, stream=_STREAM)
    scale, spent = float(np.sqrt(operator.inner(ahead, ahead).max())), 0
    while True:
        fresh, spanned = extend_basis(operator, grams, "Q", ahead, scale)
        if not spanned:
            # The space is invariant, so nothing of the kernel is left.
            return found.pairs(grams, count, rtol, spent, is_complete=True)
        if grams.width("Q") + len(spanned) > columns:
            # What is fresh is orthogonal to all of the old basis, and holds all residuals.
            grams = _restarted(operator, grams, max(count + 1, columns // 2))
        ahead = operator.apply(fresh)
        spent += len(spanned)
        grams.append("Q", fresh, len(spanned))
        grams.append("KQ", ahead, len(spanned))
        found = _Ritz.of(operator, grams, count + block)
        scale = float(found.values[0])
        is_wide = grams.width("Q") > min(operator.shape[0] - 1, count)
        if (is_wide and found.is_within(count, rtol)) or spent + block > most:
            return found.pairs(grams, count, rtol, spent)


@dataclass(frozen=True)
class _Ritz:
    """Ritz values, largest first, with coefficients over the basis, residuals and errors."""

    values: Small
    coefficients: Small
    residuals: Small
    errors: Small
    rounding: float

    @staticmethod
    def none() -> _Ritz:
        empty = np.zeros(0)
        return _Ritz(empty, np.zeros((0, 0)), empty, empty, 0.0)

    @staticmethod
    def of(operator: Map, grams: Grams, count: int) -> _Ritz:
        values, coefficients = _rayleigh_ritz(grams, count)
        left = grams.combine("KQ", coefficients) - grams.combine("Q", coefficients * values)
        rounding = ROUNDING * operator.epsilon * float(np.abs(values).max())
        residuals = np.maximum(np.sqrt(operator.inner(left, left)), rounding)
        errors = np.maximum(np.minimum(residuals, _squared_over_gap(values, residuals)), rounding)
        return _Ritz(np.maximum(values, 0), coefficients, residuals, errors, rounding)

    def is_within(self, count: int, rtol: float) -> bool:
        """Whether the first values are known to the tolerance, or to the rounding of the largest."""
        tolerance = np.maximum(rtol * self.values[:count], self.rounding)
        return bool(np.all(self.errors[:count] <= tolerance))

    def pairs(
        self, grams: Grams, count: int, rtol: float, spent: int, *, is_complete: bool = False
    ) -> Eigenpairs:
        """The first ones that are not zero."""
        chosen = np.flatnonzero(self.values[:count] > self.rounding)
        return Eigenpairs(
            self.values[chosen],
            grams.combine("Q", self.coefficients[:, chosen]),
            self.residuals[chosen],
            self.errors[chosen],
            "krylov",
            is_complete or self.is_within(count, rtol),
            Cost(products=spent),
        )


def _rayleigh_ritz(grams: Grams, count: int) -> tuple[Small, Small]:
    """The largest Ritz values, largest first, and their coefficients over the basis."""
    small = grams.gram("Q", "KQ")
    values, coefficients = np.linalg.eigh((small + small.T) / 2)
    # Copies: a negative stride is nothing for other libraries.
    return values[::-1][:count].copy(), coefficients[:, ::-1][:, :count].copy()


def _squared_over_gap(values: Small, residuals: Small) -> Small:
    """What the first p values may be off by together, ‖R_p‖²/gap_p, at the best p for each of them.

    Values of a cluster are as near as the cluster is far from what follows it.
    """
    gaps = values[:-1] - values[1:] - residuals[1:]
    squares = np.cumsum(residuals[:-1] ** 2)
    together = np.divide(squares, gaps, out=np.full(len(gaps), np.inf), where=gaps > 0)
    best: Small = np.minimum.accumulate(np.append(together, np.inf)[::-1])[::-1]
    return best


def _restarted(operator: Map, grams: Grams, width: int) -> Grams:
    """A basis of the best Ritz vectors, with their products."""
    _, best = _rayleigh_ritz(grams, width)
    fresh = Grams(operator)
    fresh.append("Q", grams.combine("Q", best), best.shape[1])
    fresh.append("KQ", grams.combine("KQ", best), best.shape[1])
    return fresh
