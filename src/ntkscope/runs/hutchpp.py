"""Hutch++: the trace of what a sketch captures exactly, of the rest by Hutchinson."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Map
from ntkscope.results import Estimate
from ntkscope.runs.drive import SHORT_STRIDE
from ntkscope.runs.grams import Grams
from ntkscope.runs.moments import ROUNDING
from ntkscope.runs.orthonormal import extend_basis
from ntkscope.runs.statistics import summarise

__all__ = ["HutchPlusPlusRun"]

Small = NDArray[np.float64]

# Share of a probe's squared length below which what the basis leaves of it is rounding alone.
_ROUNDING_LENGTH = 1e-6


class HutchPlusPlusRun:
    """tr A by Hutch++ (Meyer, Musco, Musco, Woodruff 2021, arXiv 2010.09649).

    With probes S and G that are independent of each other, and Q = orth(AS),

        tr A ≈ tr(QᵀAQ) + (1/s) Σⱼ pⱼᵀ A pⱼ,    pⱼ = (I - QQᵀ) gⱼ, scaled to ‖pⱼ‖² = n - rank Q.

    The scale is that of arXiv 2301.07825: probes have all the same length, and without
    it they would lose that by the projection, and with it the trace of a multiple of
    the identity, which they know exactly.

    Of m products ⌊2m/9⌋ make AS (one at least), as many as Q has columns make AQ, and
    all the others go to the residual: in these proportions arXiv 2511.10796 spends
    them. In thirds, as in arXiv 2010.09649, the error on a flat spectrum is √3 times
    that of plain Hutchinson; so it is √(9/5). A p is computed as
    A g - (A Q)(Qᵀ g), so that a run that grows keeps every product.

    The error bar is the standard error of the residual samples: given Q they are
    independent, so it is honest; it is ``None`` for a single residual probe.

    Args:
        operator: A, shape (n, n). For A = K², a ProductMap, which costs two
            products of K a probe: the way of arXiv 2511.10796 to ‖K‖_F.
        seed: Of the probes.
        stream: Of the sketch; the residual's is the next one.
        method: Name of the method.
        quantity: What tr A is.
        products_per_probe: What a product with A costs.
    """

    stride = SHORT_STRIDE

    def __init__(
        self,
        operator: Map,
        *,
        seed: int,
        stream: int = 0,
        method: str = "hutch++",
        quantity: str = "trace",
        products_per_probe: int = 1,
    ) -> None:
        self._operator = operator
        self._seed = seed
        self._stream = stream
        self._labels = (method, quantity)
        self._unit = products_per_probe
        self._grams = Grams(operator)
        self._scale = 0.0
        self._sketched = 0
        self._waiting: list[object] = []
        self.minimum = self.quantum = 3 * products_per_probe

    def grow(self, products: int) -> None:
        """Sketch, extend Q, and spend the rest on the residual."""
        probes = products // self._unit
        self._sketch(max(1, 2 * probes // 9))
        self._extend()
        grams = self._grams
        known = grams.width("G")
        wanted = probes - self._sketched - grams.width("Q")
        if wanted > known:
            probes = self._operator.probes(known, wanted, seed=self._seed, stream=self._stream + 1)
            image = self._operator.apply(probes)
            grams.append("G", probes, wanted - known)
            grams.append("AG", image, wanted - known)

    def _sketch(self, wanted: int) -> None:
        if wanted > self._sketched:
            probes = self._operator.probes(self._sketched, wanted, seed=self._seed, stream=self._stream)
            self._waiting.append(self._operator.apply(probes))
            self._sketched = wanted

    def _extend(self) -> None:
        """Bring what was sketched into Q, and multiply the new columns of Q."""
        while self._waiting:
            block = self._waiting[0]
            squares = self._operator.inner(block, block)
            scale = max(self._scale, float(np.sqrt(squares.max())))
            fresh, spanned = extend_basis(self._operator, self._grams, "Q", block, scale)
            image = self._operator.apply(fresh) if spanned else None
            self._grams.append("Q", fresh, len(spanned))
            self._grams.append("AQ", image, len(spanned))
            self._scale = scale
            self._waiting.pop(0)

    def result(self) -> Estimate:
        """The trace, with the standard error of the residual.

        Raises:
            ValueError: If no residual probe has run yet.
        """
        grams = self._grams
        if not grams.width("G"):
            raise ValueError(f"hutch++ has no residual probe yet; spend {self.minimum} products or more")
        captured = float(np.trace(grams.gram("Q", "AQ")))
        residual = _residual_samples(grams, self._operator.shape[0])
        summary = summarise(captured + residual, level=float(residual.mean()))
        stderr = summary.stderr
        if stderr is not None:
            stderr = max(stderr, ROUNDING * self._operator.epsilon * abs(summary.value)) or None
        method, quantity = self._labels
        return Estimate(
            summary.value,
            stderr,
            method,
            quantity,
            samples=captured + residual,
            degrees_of_freedom=summary.degrees_of_freedom,
            seed=self._seed,
        )


def _residual_samples(grams: Grams, size: int) -> Small:
    """pᵀ A p for p = (I - QQᵀ) g at its expected length, from Gram matrices; A need not be symmetric."""
    quadratic = grams.inner("G", "AG")
    rank = grams.width("Q")
    if not rank:
        return quadratic
    inside = grams.gram("Q", "G")
    left = np.sum(grams.gram("AQ", "G") * inside, axis=0)
    right = np.sum(inside * grams.gram("Q", "AG"), axis=0)
    middle = np.sum(inside * (grams.gram("Q", "AQ") @ inside), axis=0)
    whole = grams.inner("G", "G")
    lengths = whole - np.sum(inside**2, axis=0)
    samples: Small = quadratic - left - right + middle
    # A probe of which nothing but rounding is left has no direction, and says nothing of the rest.
    left_over = lengths > _ROUNDING_LENGTH * whole
    if left_over.any():
        samples = samples[left_over] * (size - rank) / lengths[left_over]
    return samples
