"""Leave-one-out samples of a sketch, and what they are without one more probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ntkscope.runs.deflation import Deflated
from ntkscope.runs.moments import LeftOut, Moments
from ntkscope.runs.shared import left_out_probes
from ntkscope.runs.statistics import effective_degrees_of_freedom
from ntkscope.runs.threads import one_thread

__all__ = ["sketch_moments"]

Small = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Samples:
    """One leave-one-out sample a probe, and the mean of its random part."""

    traces: Small  # (k, c)
    inner: Small  # (k, c, c)
    trace_level: Small  # (c,)
    inner_level: Small  # (c, c)
    variances: Small  # (k, c): of one trace, given the other probes


def _times(matrices: Small, lost: Small) -> Small:
    """Matrices (..., r, r) times every slice of (k, r, c), shape (..., k, r, c)."""
    probes, rank, count = lost.shape
    flat = matrices @ lost.transpose(1, 0, 2).reshape(rank, probes * count)
    shaped = flat.reshape(*matrices.shape[:-1], probes, count)
    return np.moveaxis(shaped, -2, -3)


def _leave_one_out(small: Deflated) -> _Samples:
    """The samples tᵢ: what the other probes captured, and what probe i finds missing."""
    lost = small.lost
    share = np.einsum("krc,rk->kc", lost, small.inside)
    back = np.einsum("krc,kc->rk", lost, share)
    core_lost = _times(small.core, lost)
    lost_core_lost = np.einsum("krd,akrc->akdc", lost, core_lost)
    lengths = small.lengths + np.sum(share**2, axis=1)
    width = np.sum(np.any(lost != 0, axis=1), axis=1)
    ideal = small.size - small.rank + width
    scale = np.where(lengths > 0, ideal / np.where(lengths > 0, lengths, 1), 0)

    captured = np.trace(small.core, axis1=1, axis2=2)[:, None] - np.trace(lost_core_lost, axis1=2, axis2=3)
    moved = small.core @ back
    residual = scale * (small.forms + np.sum(back * (2 * small.across + moved), axis=1))

    inner_captured = _captured_products(small, core_lost, lost_core_lost)
    added = small.squares @ back
    products = small.products + np.sum(back * (small.lifted + added), axis=2)
    products = products + np.sum(back * small.lifted.transpose(1, 0, 2, 3), axis=2)
    across = small.across + moved
    across = across - np.einsum("krc,akc->ark", lost, np.einsum("krc,ark->akc", lost, across))
    inner_residual = scale * (products - np.einsum("ark,brk->abk", across, across))
    return _Samples(
        traces=(captured + residual).T,
        inner=(inner_captured + inner_residual).transpose(2, 0, 1),
        trace_level=residual.mean(axis=1),
        inner_level=inner_residual.mean(axis=2),
        # For ω uniform on a sphere Var ωᵀDω = 2 E‖y‖², with y the part of Dω across ω.
        variances=2 * np.maximum(np.einsum("aak->ak", inner_residual) - residual**2 / ideal, 0).T,
    )


def _captured_products(small: Deflated, core_lost: Small, lost_core_lost: Small) -> Small:
    """⟨A_a, A_b⟩ + 2⟨B_a, B_b⟩ = 2⟨K_aQ, K_bQ⟩ - ⟨A_a, A_b⟩ without probe i, shape (c, c, k)."""
    lost = small.lost
    squares_lost = _times(small.squares, lost)
    columns = np.trace(small.squares, axis1=2, axis2=3)[:, :, None]
    columns = columns - np.einsum("krc,abkrc->abk", lost, squares_lost)
    cores = np.einsum("ars,brs->ab", small.core, small.core)[:, :, None]
    cores = cores - 2 * np.einsum("akrc,bkrc->abk", core_lost, core_lost)
    cores = cores + np.einsum("akdc,bkdc->abk", lost_core_lost, lost_core_lost)
    captured: Small = 2 * columns - cores
    return captured


def _captured_by_all(small: Deflated) -> Small:
    """⟨A_a, A_b⟩ + 2⟨B_a, B_b⟩ with the basis of all probes, shape (c, c)."""
    cores = np.einsum("ars,brs->ab", small.core, small.core)
    captured: Small = 2 * np.trace(small.squares, axis1=2, axis2=3) - cores
    return captured


@one_thread
def sketch_moments(small: Deflated) -> Moments:
    """Means of the leave-one-out samples, and what the jackknife needs.

    Once the basis exhausts a kernel's range, only the probes that came after
    that are used for it: for them the basis is a given.
    """
    samples = _leave_one_out(small)
    # Where some probes add to the basis for no kernel, they serve all kernels.
    free = small.free & small.free.all(axis=0) if small.free.all(axis=0).any() else small.free
    pairs = free[:, None] & free[None]
    traces, trace_freedom = _focus(samples.traces, free.T, samples.trace_level)
    flat, flat_freedom = _focus(
        samples.inner.reshape(len(samples.inner), -1),
        pairs.reshape(-1, pairs.shape[2]).T,
        samples.inner_level.reshape(-1),
    )
    inner = flat.reshape(samples.inner.shape)
    inner = (inner + inner.transpose(0, 2, 1)) / 2
    left_out = None if free.any(axis=1).all() else _left_out(small)
    if left_out is not None:
        left_out = _settled(left_out, traces, inner, np.any(free, axis=1), np.any(pairs, axis=2))
    return Moments(
        traces=traces.mean(axis=0),
        inner=inner.mean(axis=0),
        trace_samples=traces,
        inner_samples=inner,
        trace_freedom=trace_freedom,
        inner_freedom=flat_freedom.reshape(inner.shape[1:]),
        left_out=left_out,
        trace_variances=samples.variances.mean(axis=0) if 2 * small.rank > small.size else None,
        trace_least=np.trace(small.core, axis1=1, axis2=2),
        inner_least=_captured_by_all(small),
        rest=small.size - small.rank,
        epsilon=small.epsilon,
    )


def _focus(samples: Small, free: NDArray[np.bool_], levels: Small) -> tuple[Small, Small]:
    """Influence values with the mean of the free samples, where there are such.

    A column with f of k free samples gets the mean of these, and the spread of k
    values that gives its standard error. Degrees of freedom 0 stand for one sample.
    """
    focused, freedom = samples.copy(), np.zeros(samples.shape[1])
    for column in range(samples.shape[1]):
        chosen = free[:, column] if free[:, column].any() else np.ones(len(samples), dtype=bool)
        values = samples[chosen, column]
        if len(values) > 1:
            variance = float(np.var(values, ddof=1))
            freedom[column] = effective_degrees_of_freedom(len(values), variance, float(levels[column]))
        if len(values) < len(samples):
            factor = np.sqrt((len(samples) * (len(samples) - 1)) / max(len(values) * (len(values) - 1), 1))
            focused[:, column] = values.mean()
            focused[chosen, column] += (values - values.mean()) * factor
    return focused, freedom


def _settled(
    left_out: LeftOut, traces: Small, inner: Small, known: NDArray[np.bool_], pairs: NDArray[np.bool_]
) -> LeftOut:
    """Nothing changes without one probe where free samples were taken: they share none."""
    full_traces = np.array([np.delete(traces, probe, axis=0) for probe in left_out.probes])
    full_inner = np.array([np.delete(inner, probe, axis=0) for probe in left_out.probes])
    return LeftOut(
        left_out.probes,
        traces=np.where(known, full_traces, left_out.traces),
        inner=np.where(pairs, full_inner, left_out.inner),
    )


def _left_out(small: Deflated) -> LeftOut | None:
    """The moments without one probe, for some of the probes."""
    probes = small.inside.shape[1]
    if probes < 3:
        return None
    chosen = left_out_probes(probes)
    samples = [_leave_one_out(small.without(probe)) for probe in chosen]
    return LeftOut(
        chosen,
        traces=np.array([s.traces for s in samples]),
        inner=np.array([s.inner for s in samples]),
    )
