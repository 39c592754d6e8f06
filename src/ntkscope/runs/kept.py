"""Inner products of a ring that are kept, and what follows from two kernels' without the models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Small
from ntkscope.runs.moments import ROUNDING, MomentSource, Monomial
from ntkscope.runs.ring import Ring, RingProducts
from ntkscope.runs.statistics import Summary

__all__ = ["KeptProducts", "MomentsOf", "Tiles", "distance", "inner_products", "kept_products"]

#: Shape (1 + c, nb, q, m, q, m): the blocks on the diagonal, and those at each of c offsets.
Tiles: TypeAlias = NDArray[np.floating[Any]]

# Numbers in a tile.
_ROOM = 1 << 21


@dataclass(frozen=True, eq=False)
class KeptProducts:
    """The inner products of one kernel, as :class:`ntkscope.runs.ring.RingProducts`.

    Attributes:
        tiles: Shape (1 + c, nb, q, m, q, m), by offset, first block, sample, probe, sample, probe.
        epsilon: Relative rounding error of the products.
    """

    tiles: Tiles
    epsilon: float

    def ring(
        self, order: NDArray[np.int64], block: int, offsets: Sequence[int], room: int
    ) -> Iterator[tuple[int, int, Small]]:
        """As :meth:`ntkscope.runs.ring.RingProducts.ring`, around the ring that they were kept for."""
        step = max(1, room // math.prod(self.tiles.shape[2:]))
        for offset, tiles in zip(offsets, self.tiles, strict=True):
            for start in range(0, len(tiles), step):
                yield offset, start, np.asarray(tiles[start : start + step], dtype=np.float64)

    def over(self, scale: float) -> KeptProducts:
        """Those of K / scale, in float64."""
        return dataclasses.replace(self, tiles=np.asarray(self.tiles, dtype=np.float64) / scale)


#: Moments of some kernels, of the pairs ⟨K_a, K_b⟩ that are wanted.
MomentsOf: TypeAlias = Callable[[Sequence[KeptProducts], Sequence[tuple[int, int]]], MomentSource]


def kept_products(products: RingProducts, ring: Ring, probes: int, dtype: type[np.floating[Any]]) -> Tiles:
    """All inner products around a ring: shape (1 + c, nb, q, m, q, m)."""
    offsets = (0, *ring.offsets)
    shape = (len(offsets), ring.blocks, ring.block, probes, ring.block, probes)
    tiles = np.zeros(shape, dtype=dtype)
    for offset, start, found in products.ring(ring.order, ring.block, offsets, _ROOM):
        tiles[offsets.index(offset), start : start + len(found)] = found
    return tiles


def inner_products(
    kernels: Sequence[KeptProducts], ring: Ring, probes: int, *, shared: bool = False
) -> Small:
    """⟨K_a, K_b⟩ of all pairs of c kernels, shape (c, c), by one product of matrices and without errors.

    Args:
        kernels: The products.
        ring: Their ring.
        probes: m.
        shared: Whether all samples have the same probes.
    """
    others = np.full((ring.block, probes, ring.block, probes), 1 / probes**2)
    apart = (1 - np.eye(probes)) / (probes * (probes - 1))
    if shared:
        others[:] = apart[:, None, :]
    own = others.copy()
    index = np.arange(ring.block)
    own[index, :, index, :] = apart
    total = np.zeros((len(kernels), len(kernels)))
    for place, weight in enumerate((1.0, *[ring.weight] * len(ring.offsets))):
        shares = others if place else own
        # Block by block, so that no second copy of all kernels is made.
        for block in range(ring.blocks):
            rows = np.stack([kernel.tiles[place, block].ravel() for kernel in kernels]).astype(np.float64)
            total += weight * ((rows * shares.ravel()) @ rows.T)
    return total


def distance(
    first: KeptProducts, second: KeptProducts, moments: MomentsOf, norms: tuple[float, float]
) -> Monomial:
    """1 - cos(K, K') = ½‖K/‖K‖ - K'/‖K'‖‖²_F, from the products of both less each other.

    What both have in common is gone before anything is squared, and so is its noise: of a distance of
    1e-6 as many digits are known as of the norm. With U = K/‖K‖ - K'/‖K'‖ at the estimated norms it is
    ½‖U‖², and what the norms' own errors add to its error is that of ½‖U‖²/(‖K‖‖K'‖) at norms of 1.

    Args:
        first: The products of K.
        second: Those of K' for the same probes.
        moments: Takes products of kernels, and the pairs of kernels that are wanted, to their moments.
        norms: ‖K‖ and ‖K'‖, estimated from the same products.

    Returns:
        The distance, 0 for equal products; its standard error is never below what rounding leaves.
        Its value is nan if a kernel is zero.
    """
    if not min(norms) > 0:
        return Monomial(Summary(math.nan, None), note="the alignment with a zero kernel is not defined")
    units = [kernel.over(norm) for kernel, norm in zip((first, second), norms, strict=True)]
    epsilon = max(first.epsilon, second.epsilon)
    apart = KeptProducts(units[0].tiles - units[1].tiles, epsilon)
    source = moments([apart, *units], [(0, 0), (1, 1), (2, 2)])
    found = source.monomial({(0, 0): 1, (1, 1): -0.5, (2, 2): -0.5})
    value = found.summary.value / 2
    # Rounding by R moves ½‖U‖² by ⟨U, R⟩ and ½‖R‖².
    rounding = ROUNDING * epsilon * (math.sqrt(2 * value) + epsilon)
    if value == 0:
        return Monomial(Summary(0.0, rounding))
    known = found.summary.stderr
    stderr = None if known is None else math.hypot(known / 2, rounding)
    samples = None if found.samples is None else found.samples / 2
    return Monomial(Summary(value, stderr, found.summary.degrees_of_freedom), samples)
