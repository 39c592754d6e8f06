"""XNysTrace, and its leave-one-out Nyström form for norms and inner products."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Map
from ntkscope.runs.drive import SHORT_STRIDE
from ntkscope.runs.grams import Grams
from ntkscope.runs.moments import LeftOut, Moments
from ntkscope.runs.shared import left_out_probes
from ntkscope.runs.statistics import effective_degrees_of_freedom
from ntkscope.runs.threads import one_thread

__all__ = ["NystromRun"]

Small = NDArray[np.float64]


class NystromRun:
    """Traces and inner products of c kernels from leave-one-out Nyström approximations.

    With probes Ω, Y = KΩ, H = ΩᵀY, F = YH⁻¹, d = diag H⁻¹, the Nyström approximation
    K̂ = YH⁻¹Yᵀ without probe i is K̂⁽ⁱ⁾ = K̂ - fᵢfᵢᵀ/dᵢ, and misses of probe i
    Kωᵢ - K̂⁽ⁱ⁾ωᵢ = fᵢ/dᵢ. So

        tr K ≈ mean of tr K̂⁽ⁱ⁾ + 1/dᵢ                          (XNysTrace)
        ⟨K_1, K_2⟩ ≈ mean of ⟨K̂_1⁽ⁱ⁾, K̂_2⁽ⁱ⁾⟩ + ⟨y_1ᵢ, y_2ᵢ⟩ - ⟨K̂_1⁽ⁱ⁾ωᵢ, K̂_2⁽ⁱ⁾ωᵢ⟩

    with 1/dᵢ scaled by (n-k+1)/‖ω̃ᵢ‖², where ω̃ᵢ is the part of ωᵢ outside of the
    other probes, all that K - K̂⁽ⁱ⁾ sees. One product a probe and kernel.
    (Epperly, Tropp, Webber 2024, arXiv 2301.07825.)

    A kernel whose rank is below the number of probes makes H singular; then K + νI
    is estimated, with ν n of the order of the rounding of H, and ν is taken off.

    Args:
        maps: The kernels, c positive semidefinite maps of shape (n, n).
        seed: Of the probes.
        stream: Of the probes.
    """

    stride = SHORT_STRIDE

    def __init__(self, maps: Sequence[Map], *, seed: int, stream: int = 0) -> None:
        self._maps = maps
        self._seed = seed
        self._stream = stream
        self._grams = Grams(maps[0])
        self.quantum = len(maps)
        self.minimum = 2 * len(maps)

    def grow(self, products: int) -> None:
        """Multiply more probes."""
        start, stop = self._grams.width("O"), products // len(self._maps)
        if stop > start:
            probes = self._maps[0].probes(start, stop, seed=self._seed, stream=self._stream)
            images = [operator.apply(probes) for operator in self._maps]
            self._grams.append("O", probes, stop - start)
            for a, image in enumerate(images):
                self._grams.append(f"Y{a}", image, stop - start)

    def result(self) -> Moments:
        """The moments with their samples.

        Raises:
            ValueError: If fewer than two probes have run.
        """
        if self._grams.width("O") < 2:
            raise ValueError(f"Nyström needs two probes; spend {self.minimum} products or more")
        epsilon = max(operator.epsilon for operator in self._maps)
        small = _approximate(self._maps[0], self._grams, len(self._maps), epsilon)
        return _moments(small, epsilon)


@dataclass(frozen=True, eq=False)
class _Approximation:
    """Nyström approximations K̂_a = B_aB_aᵀ of c kernels K_a + ν_aI, with B_aC_a = Y_a.

    Attributes:
        size: n.
        shift: ν_a, shape (c,).
        core: B_aᵀB_b, shape (c, c, k, k).
        root: C_a with C_aᵀC_a = H_a, shape (c, k, j), one column for each of j probes.
        dual: C_a⁻ᵀ, shape (c, k, j): orthogonal to every column of C_a but its own.
        images: y_aᵀy_b, shape (c, c, j).
        probes: (ΩᵀΩ)⁻¹, shape (j, j).
        alive: 0 for a kernel of which every product was 0, otherwise 1.
    """

    size: int
    shift: Small
    core: Small
    root: Small
    dual: Small
    images: Small
    probes: Small
    alive: Small

    def without(self, probe: int) -> _Approximation:
        """The same with neither the probe nor what it adds to K̂."""
        keep = np.arange(self.root.shape[2]) != probe
        unit = self.dual[:, :, probe]
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        left = np.einsum("ak,abkl->abl", unit, self.core)
        core = self.core - unit[:, None, :, None] * left[:, :, None, :]
        right = np.einsum("abkl,bl->abk", core, unit)
        core = core - right[:, :, :, None] * unit[None, :, None, :]
        dual = self.dual[:, :, keep]
        dual = dual - unit[:, :, None] * np.einsum("ak,akj->aj", unit, dual)[:, None, :]
        pivot = self.probes[probe, probe]
        cross = self.probes[keep, probe]
        return dataclasses.replace(
            self,
            core=core,
            root=self.root[:, :, keep],
            dual=dual,
            images=self.images[:, :, keep],
            probes=self.probes[np.ix_(keep, keep)] - np.outer(cross, cross) / pivot,
        )


def _approximate(space: Map, grams: Grams, count: int, epsilon: float) -> _Approximation:
    probes = grams.gram("O", "O")
    roots, duals, shifts, blocks = [], [], [], []
    for a in range(count):
        values, vectors, shift = _shifted(grams.gram("O", f"Y{a}"), probes, epsilon)
        roots.append((vectors * np.sqrt(values)).T)
        duals.append((vectors / np.sqrt(values)).T)
        shifts.append(shift)
        # Gram matrices square the condition: beyond 1e9 the block B itself must be made.
        ill = values[-1] > 1e9 * values[0]
        blocks.append(_whitened(grams, a, shift, duals[a].T) if ill else None)
    shifted = _shifted_images(grams, count, shifts)

    def core(a: int, b: int) -> Small:
        if blocks[a] is None and blocks[b] is None:
            small: Small = duals[a] @ shifted[a, b] @ duals[b].T
            return small
        for i in (a, b):
            if blocks[i] is None:
                blocks[i] = _whitened(grams, i, shifts[i], duals[i].T)
        return space.gram(blocks[a], blocks[b])

    return _Approximation(
        size=space.shape[0],
        shift=np.array(shifts),
        core=np.array([[core(a, b) for b in range(count)] for a in range(count)]),
        root=np.array(roots),
        dual=np.array(duals),
        images=np.diagonal(shifted, axis1=2, axis2=3),
        probes=np.asarray(np.linalg.inv(probes), dtype=np.float64),
        alive=np.array([1.0 if grams.gram("O", f"Y{a}").any() else 0.0 for a in range(count)]),
    )


def _shifted(form: Small, probes: Small, epsilon: float) -> tuple[Small, Small, float]:
    """Eigenvalues and vectors of H = Ωᵀ(K + νI)Ω, and the ν that lifts them above rounding."""
    form = (form + form.T) / 2
    values = np.linalg.eigvalsh(form)
    tiny = np.finfo(np.float64).tiny
    level = max(10 * epsilon * abs(values[-1]), 2 * max(0.0, -values[0]), tiny**0.5)
    shift = level / float(np.linalg.eigvalsh(probes)[0]) if values[0] < level else 0.0
    values, vectors = np.linalg.eigh(form + shift * probes)
    return np.maximum(values, level / 4), vectors, shift


def _whitened(grams: Grams, a: int, shift: float, coefficients: Small) -> object:
    """B = (Y + νΩ) C⁻¹ as a block."""
    block = grams.combine(f"Y{a}", coefficients)
    return block + grams.combine("O", coefficients * shift) if shift else block


def _shifted_images(grams: Grams, count: int, shifts: list[float]) -> Small:
    """(Y_a + ν_aΩ)ᵀ(Y_b + ν_bΩ), shape (c, c, k, k)."""
    probes = grams.gram("O", "O")
    forms = [grams.gram("O", f"Y{a}") for a in range(count)]
    return np.array(
        [
            [
                grams.gram(f"Y{a}", f"Y{b}")
                + shifts[a] * forms[b]
                + shifts[b] * forms[a].T
                + shifts[a] * shifts[b] * probes
                for b in range(count)
            ]
            for a in range(count)
        ]
    )


def _leave_one_out(small: _Approximation) -> tuple[Small, Small, Small, Small]:
    """Samples of traces (j, c) and inner products (j, c, c), and the means of their random parts."""
    pivots = np.sum(small.dual**2, axis=1)
    unit = small.dual / np.sqrt(pivots)[:, None, :]
    count = len(small.shift)
    missed = 1 / np.diag(small.probes)
    scale = (small.size - small.root.shape[2] + 1) / missed
    seen = small.root - unit * np.sum(unit * small.root, axis=1)[:, None, :]
    traces = np.empty((count, len(missed)))
    inner = np.empty((count, count, len(missed)))
    level = np.empty((count, count))
    for a in range(count):
        own = small.core[a, a]
        traces[a] = np.trace(own) - np.sum(unit[a] * (own @ unit[a]), axis=0) + scale / pivots[a]
        traces[a] -= small.shift[a] * small.size
    for a in range(count):
        for b in range(count):
            core = small.core[a, b]
            left, right = core.T @ unit[a], core @ unit[b]
            captured = np.sum(core**2) - np.sum(left**2, axis=0) - np.sum(right**2, axis=0)
            captured = captured + np.sum(unit[a] * right, axis=0) ** 2
            residual = small.images[a, b] - np.sum(seen[a] * (core @ seen[b]), axis=0)
            # ⟨K_a + ν_aI, K_b + ν_bI⟩ less what the shifts added.
            inner[a, b] = captured + residual - small.shift[a] * small.shift[b] * small.size
            inner[a, b] -= small.shift[a] * traces[b] + small.shift[b] * traces[a]
            level[a, b] = residual.mean()
    alive = small.alive
    traces, inner = traces * alive[:, None], inner * (alive[:, None] * alive)[:, :, None]
    return traces.T, inner.transpose(2, 0, 1), (scale / pivots).mean(axis=1), level


@one_thread
def _moments(small: _Approximation, epsilon: float) -> Moments:
    traces, inner, trace_level, inner_level = _leave_one_out(small)
    variances = _variances(small)
    inner = (inner + inner.transpose(0, 2, 1)) / 2
    probes, count = traces.shape

    least = _captured_by_all(small)

    def freedom(samples: Small, level: float) -> float:
        return effective_degrees_of_freedom(probes, float(np.var(samples, ddof=1)), float(level))

    return Moments(
        traces=traces.mean(axis=0),
        inner=inner.mean(axis=0),
        trace_samples=traces,
        inner_samples=inner,
        trace_freedom=np.array([freedom(traces[:, a], trace_level[a]) for a in range(count)]),
        inner_freedom=np.array(
            [[freedom(inner[:, a, b], inner_level[a, b]) for b in range(count)] for a in range(count)]
        ),
        left_out=_left_out(small),
        trace_variances=variances if 2 * probes > small.size else None,
        trace_least=least["trace_least"],
        inner_least=least["inner_least"],
        epsilon=epsilon,
    )


def _variances(small: _Approximation) -> Small:
    """Variance of one sample of the trace of every kernel, given the other probes, shape (c,).

    For ω uniform on a sphere Var ωᵀDω = 2 E‖y‖², with y the part of Dω across ω; here Dω̃ᵢ = fᵢ/dᵢ
    in the n - k + 1 directions outside of the other probes.
    """
    pivots = np.sum(small.dual**2, axis=1)
    unit = small.dual / np.sqrt(pivots)[:, None, :]
    outside = small.size - small.root.shape[2] + 1
    scale = outside * np.diag(small.probes)
    cores = np.moveaxis(np.diagonal(small.core, axis1=0, axis2=1), -1, 0)
    squares = scale * np.sum(unit * (cores @ unit), axis=1) / pivots
    across = squares - (scale / pivots) ** 2 / outside
    variances: Small = 2 * np.maximum(across, 0).mean(axis=1)
    return variances


def _captured_by_all(small: _Approximation) -> dict[str, Small]:
    """Tr K̂_a and ⟨K̂_a, K̂_b⟩ of all probes: K - K̂ is positive semidefinite, and its trace not negative."""
    traces = np.trace(np.moveaxis(np.diagonal(small.core, axis1=0, axis2=1), -1, 0), axis1=1, axis2=2)
    traces = (traces - small.shift * small.size) * small.alive
    inner = np.sum(small.core**2, axis=(2, 3))
    # ⟨K_a + ν_aI, K_b + ν_bI⟩ less what the shifts added, at the most.
    shifts = np.outer(small.shift, small.shift) * small.size
    inner = inner - shifts - np.outer(small.shift, traces) - np.outer(traces, small.shift)
    return {"trace_least": traces, "inner_least": inner * np.outer(small.alive, small.alive)}


def _left_out(small: _Approximation) -> LeftOut | None:
    """The moments without one probe, for some of the probes."""
    probes = small.root.shape[2]
    if probes < 3:
        return None
    chosen = left_out_probes(probes)
    samples = [_leave_one_out(small.without(probe)) for probe in chosen]
    return LeftOut(
        chosen,
        traces=np.array([s[0] for s in samples]),
        inner=np.array([s[1] for s in samples]),
    )
