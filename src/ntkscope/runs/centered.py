"""Centred kernels from probes that all samples share.

With the same probe z_i for every sample, the gradients of J_b - mean_b J_b are those of J_b less
their mean, g_{b,i} - mean_b g_{b,i}; and so their inner products T_c follow from T by arithmetic. For
i ≠ j the probes are independent, so that

    ⟨K_c, K_c'⟩ ≈ mean over i ≠ j of Σ_{b,b'} T_c T_c',    tr K_c ≈ mean_i Σ_b T_c[(b,i),(b,i)]

without bias. They lie on a sphere, since signs over a few outputs repeat their patterns and look surer
than they are. The pairs of probes share probes: errors are the jackknife's, as of
:class:`ntkscope.runs.gram.GramRun`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.probes import sphere_probes
from ntkscope.runs.drive import SHORT_STRIDE
from ntkscope.runs.gram import pair_moments
from ntkscope.runs.kept import KeptProducts, Tiles, kept_products
from ntkscope.runs.moments import Moments
from ntkscope.runs.ring import ProbedSamples, Ring

__all__ = ["MINIMUM", "CenteredGramRun", "centered", "centered_moments", "shared_probes"]

#: Of three pairs of probes no error can be told.
MINIMUM = 4

_STREAM = 24


def shared_probes(index: NDArray[np.int64], start: int, stop: int, seed: int) -> NDArray[np.float64]:
    """Probes ``start..stop-1``, the same for every sample: shape (n, stop - start).

    Args:
        index: Position in the state of every output of every sample, shape (B, s).
        start: First probe.
        stop: One past the last one.
        seed: Of the probes.
    """
    probes = np.empty((index.size, stop - start))
    probes[index] = sphere_probes(index.shape[1], start, stop, seed=seed, stream=_STREAM)
    return probes


def centered(tiles: Tiles, ring: Ring) -> Tiles:
    """T_c from T over a complete ring, both of shape (1 + c, nb, q, m, q, m), in T's precision."""
    batch, blocks = len(ring.order), ring.blocks
    present = (np.arange(blocks * ring.block) < batch).reshape(blocks, ring.block).astype(np.float64)
    # Means over the second sample: (nb, q, m, m); over the first one they are the same, turned.
    means = tiles.sum(axis=(0, 4), dtype=np.float64) / batch
    whole = means.sum(axis=(0, 1)) / batch
    found = np.empty_like(tiles)
    for place, offset in enumerate((0, *ring.offsets)):
        there = np.roll(means, -offset, axis=0).transpose(0, 3, 1, 2)
        less = tiles[place] - means[:, :, :, None] - there[:, None] + whole[:, None]
        pairs = present[:, :, None] * np.roll(present, -offset, axis=0)[:, None]
        found[place] = less * pairs[:, :, None, :, None]
    return found


def centered_moments(
    kernels: Sequence[KeptProducts], probes: int, pairs: Sequence[tuple[int, int]] | None = None
) -> Moments:
    """The moments of centred kernels.

    Args:
        kernels: T_c of every kernel.
        probes: m ≥ 3.
        pairs: The inner products ⟨K_a, K_b⟩ that are wanted, a ≤ b; all of them if ``None``.
    """
    count = len(kernels)
    wanted = [(a, b) for a in range(count) for b in range(a, count)] if pairs is None else pairs
    traces = np.array([np.einsum("usisi->i", kernel.tiles[0], dtype=np.float64) for kernel in kernels])
    products = np.zeros((count, count, probes, probes))
    for a, b in wanted:
        for one, two in zip(kernels[a].tiles, kernels[b].tiles, strict=True):
            products[a, b] += (one.astype(np.float64) * two).sum(axis=(0, 1, 3))
        products[b, a] = products[a, b]
    return pair_moments(traces, products, max(kernel.epsilon for kernel in kernels))


class CenteredGramRun:
    """tr K_c and ⟨K_c, K_c'⟩ of centred kernels from m probes that all samples and kernels share.

    Args:
        kernels: The samples of every kernel, the same ones in the same order.
        index: Position in the state of every output of every sample, shape (B, s).
        seed: Of the probes.
    """

    stride = SHORT_STRIDE

    def __init__(self, kernels: Sequence[ProbedSamples], index: NDArray[np.int64], *, seed: int) -> None:
        self._kernels, self._index, self._seed = kernels, index, seed
        self._probes = 0
        self.quantum = len(kernels)
        self.minimum = MINIMUM * len(kernels)

    def grow(self, products: int) -> None:
        """Pull more probes back."""
        wanted = products // len(self._kernels)
        if wanted > self._probes:
            probes = shared_probes(self._index, self._probes, wanted, self._seed)
            for kernel in self._kernels:
                kernel.add(probes)
            self._probes = wanted

    def result(self) -> Moments:
        """The moments so far.

        Raises:
            ValueError: If fewer than four probes have run.
        """
        if self._probes < MINIMUM:
            raise ValueError(f"the centred Gram needs {MINIMUM} probes; spend {self.minimum} products")
        ring = Ring.complete(len(self._index), self._probes)
        kept = [
            KeptProducts(centered(kept_products(one, ring, self._probes, np.float64), ring), one.epsilon)
            for one in self._kernels
        ]
        return centered_moments(kept, self._probes)
