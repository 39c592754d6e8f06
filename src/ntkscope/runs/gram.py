"""Reverse mode alone: every metric from the Gram matrix of Jᵀ times a few probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Map
from ntkscope.runs.drive import SHORT_STRIDE
from ntkscope.runs.grams import Grams
from ntkscope.runs.moments import Moments
from ntkscope.runs.statistics import effective_degrees_of_freedom

__all__ = ["GramRun", "gram_moments", "pair_moments"]

Small = NDArray[np.float64]

#: Squares of quadratic forms have heavier tails than the forms; chosen by coverage.
_HEAVINESS = 3.0
#: Three pseudo-values of three pairs tell no spread of inner products.
_TELLING = 4


class GramRun:
    """Traces and inner products of K_a = J_aJ_aᵀ from X_a = J_aᵀΩ, one VJP a probe and kernel.

    M = X_aᵀX_a = ΩᵀK_aΩ for independent probes Ω gives, without bias,

        tr K_a ≈ mean of M_ii,    ⟨K_a, K_b⟩ ≈ mean over i ≠ j of M_a,ij M_b,ij.

    The pairs share probes, so the error is the jackknife's over probes, less what
    that counts twice.

    Args:
        reverse_maps: J_aᵀ, c maps of shape (p_a, n).
        seed: Of the probes.
        stream: Of the probes.
    """

    stride = SHORT_STRIDE

    def __init__(self, reverse_maps: Sequence[Map], *, seed: int, stream: int = 0) -> None:
        self._maps = reverse_maps
        self._seed = seed
        self._stream = stream
        # Kernels of different models have parameters of different number: no block is shared.
        self._grams = [Grams(operator) for operator in reverse_maps]
        self.quantum = len(reverse_maps)
        self.minimum = 3 * len(reverse_maps)

    def grow(self, products: int) -> None:
        """Multiply more probes."""
        wanted = products // len(self._maps)
        for operator, grams in zip(self._maps, self._grams, strict=True):
            known = grams.width("X")
            if wanted > known:
                probes = operator.probes(known, wanted, seed=self._seed, stream=self._stream)
                grams.append("X", operator.apply(probes), wanted - known)

    def result(self) -> Moments:
        """The moments with their samples.

        Raises:
            ValueError: If fewer than three probes have run.
        """
        probes = min(grams.width("X") for grams in self._grams)
        if probes < 3:
            raise ValueError(f"the Gram matrix needs three probes; spend {self.minimum} products or more")
        forms = np.array([grams.gram("X", "X")[:probes, :probes] for grams in self._grams])
        return gram_moments(forms, max(operator.epsilon for operator in self._maps))


def gram_moments(forms: Small, epsilon: float) -> Moments:
    """U-statistics of M_a = ΩᵀK_aΩ, shape (c, k, k), with jackknife pseudo-values as samples."""
    return pair_moments(np.diagonal(forms, axis1=1, axis2=2), forms[:, None] * forms[None], epsilon)


def pair_moments(traces: Small, pairs: Small, epsilon: float) -> Moments:
    """U-statistics of pairs of k probes.

    Args:
        traces: What each probe says of the traces, shape (c, k).
        pairs: What every two probes say of the inner products, shape (c, c, k, k), symmetric in the
            probes; a probe with itself says nothing.
        epsilon: Relative rounding error of the products.
    """
    probes = traces.shape[1]
    rows = pairs.sum(axis=3) - np.diagonal(pairs, axis1=2, axis2=3)
    total = rows.sum(axis=2, keepdims=True)
    inner = total / (probes * (probes - 1))
    without = (total - 2 * rows) / ((probes - 1) * (probes - 2))
    pseudo = probes * inner - (probes - 1) * without
    pseudo = inner + (pseudo - inner) * _degenerate_share(pairs, rows, inner, pseudo)[:, :, None]
    trace_freedom = [
        effective_degrees_of_freedom(probes, float(t.var(ddof=1)), float(t.mean())) for t in traces
    ]
    squares, square_samples = _squared_traces(traces)
    return Moments(
        traces=traces.mean(axis=1),
        inner=inner[:, :, 0],
        trace_samples=traces.T,
        inner_samples=pseudo.transpose(2, 0, 1),
        trace_freedom=np.array(trace_freedom),
        inner_freedom=_inner_freedom(inner[:, :, 0], pseudo),
        squared_traces=squares,
        squared_trace_samples=square_samples,
        epsilon=epsilon,
    )


def _inner_freedom(inner: Small, pseudo: Small) -> Small:
    """Degrees of freedom of the inner products' errors, shape (c, c); 0 where they are not known."""
    count, _, probes = pseudo.shape
    freedom = np.zeros((count, count))
    if probes < _TELLING:
        return freedom
    variances = pseudo.var(axis=2, ddof=1)
    for place in np.ndindex(count, count):
        # The first-order part of a pseudo-value is 2ωᵀK_aK_bω, less a constant.
        level = 2 * float(inner[place])
        freedom[place] = effective_degrees_of_freedom(
            probes, float(variances[place]), level, heaviness=_HEAVINESS
        )
    return freedom


def _squared_traces(forms: Small) -> tuple[Small, Small]:
    """(tr K)² as the mean of MᵢᵢMⱼⱼ over i ≠ j, with pseudo-values: shapes (c,) and (k, c).

    The square of the mean is too large by the mean's variance. This one has no bias, and moves with
    the mean of M²ᵢⱼ: of a kernel of rank one both are the same number, and its effective rank is 1.
    """
    probes = forms.shape[1]
    total = forms.sum(axis=1, keepdims=True)
    rows = forms * (total - forms)
    pairs = rows.sum(axis=1, keepdims=True)
    mean = pairs / (probes * (probes - 1))
    without = (pairs - 2 * rows) / ((probes - 1) * (probes - 2))
    return mean[:, 0], (probes * mean - (probes - 1) * without).T


def _degenerate_share(pairs: Small, rows: Small, inner: Small, pseudo: Small) -> Small:
    """Factor on the jackknife's error that takes off what it counts twice, shape (c, c).

    The jackknife counts the part of the variance that two probes make together
    twice. That part shows in what is left of the pairs after their row means. It is also what the
    variance is at least: where K is a multiple of the identity on few coordinates, probes that lie
    evenly have row means that are all alike, and the jackknife sees nothing.
    """
    probes = pairs.shape[2]
    if probes < _TELLING:
        return np.ones(pairs.shape[:2])
    means = rows / (probes - 2)
    left = pairs - means[:, :, :, None] - means[:, :, None, :] + inner[:, :, None] * probes / (probes - 2)
    squares = np.sum(left**2, axis=(2, 3)) - np.sum(np.diagonal(left, axis1=2, axis2=3) ** 2, axis=2)
    together = 2 * squares / (probes * (probes - 3)) / (probes * (probes - 1))
    jackknife = np.var(pseudo, axis=2, ddof=1) / probes
    ratio = together / np.where(jackknife > 0, jackknife, 1)
    own = np.clip(1 - ratio, 0.5, 1) if probes >= 6 else 1.0
    share: Small = np.sqrt(np.maximum(own, ratio))
    return share
