"""What is summed of inner products around a ring, tile by tile: moments, and what their errors come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntkscope.operators.space import Small
from ntkscope.runs.ring import Counted, Part, Ring, without_mean

__all__ = ["RingSums"]


def _gram(x: Small) -> Small:
    """Inner products over all axes but the first."""
    flat = x.reshape(len(x), -1)
    products: Small = flat @ flat.T
    return products


class RingSums:
    """What is summed of T_a T_b for P pairs of kernels; tiles come as (P, blocks, q, m, q, m).

    Args:
        ring: The ring.
        count: P.
        probes: M.
        own: Whether the pairs of a sample with itself are in the sums.
    """

    def __init__(self, ring: Ring, count: int, probes: int, own: bool = True) -> None:
        self._ring = ring
        self._with_own = own
        self._values = np.zeros(count)
        self._influence = np.zeros((count, ring.blocks, ring.block, probes))
        self._own = np.zeros((count, ring.blocks, ring.block))
        shape = (count, len(ring.offsets), ring.blocks, ring.block, ring.block)
        # Of many samples these are most of the memory, and only variances follow from them.
        self._pairs = np.zeros(shape, dtype=np.float32)
        self._units = np.zeros(count)
        self._twice = np.zeros((count, count))
        self._in_ring = np.zeros((count, count))
        self._within = np.zeros((count, count))

    def add(self, offset: int, start: int, products: Small) -> None:
        """Blocks from ``start`` on with those at an offset."""
        if offset:
            self._add_ring(self._ring.offsets.index(offset), offset, start, products)
        else:
            self._add_own(start, products)

    def _add_own(self, start: int, products: Small) -> None:
        """The blocks on the diagonal; their pairs of a sample with itself are cleared."""
        _, blocks, size, probes = products.shape[:4]
        here = slice(start, start + blocks)
        same = np.einsum("pusisj->pusij", products) * float(self._with_own)
        index = np.arange(size)
        products[:, :, index, :, index, :] = 0
        means = _Means.of(products)
        sums = means.by_row.sum(axis=4)
        off = same.sum(axis=(3, 4)) - np.einsum("pusii->pus", same)
        mean = off / (probes * (probes - 1))
        self._values += sums.mean(axis=3).sum(axis=(1, 2)) + mean.sum(axis=(1, 2))
        self._own[:, here] = mean
        # Twice, as the row of its pairs and as their column.
        self._influence[:, here] += 2 * sums
        if probes > 2:
            rows = same.sum(axis=4) - np.einsum("pusii->pusi", same)
            without = (off[..., None] - 2 * rows) / ((probes - 1) * (probes - 2))
            self._influence[:, here] += probes * mean[..., None] - (probes - 1) * without
        if probes > 3:
            self._within += _within(same, rows / (probes - 2), mean)
        # Each pair of samples stands there twice, and counts twice: 4 of every two entries.
        self._twice += 2 * means.interaction() / ((probes - 1) * probes) ** 2

    def _add_ring(self, place: int, offset: int, start: int, products: Small) -> None:
        """The pairs of blocks at one offset."""
        _, blocks, size, probes = products.shape[:4]
        weight, here = self._ring.weight, slice(start, start + blocks)
        there = (np.arange(start, start + blocks) + offset) % self._ring.blocks
        means = _Means.of(products)
        self._pairs[:, place, here] = means.pairs / self._in_range(means.pairs)
        self._values += weight * means.pairs.sum(axis=(1, 2, 3))
        self._influence[:, here] += weight * means.by_row.sum(axis=4)
        self._influence[:, there] += weight * means.by_column.sum(axis=2)
        together = means.interaction() / ((probes - 1) * probes) ** 2
        self._twice += weight**2 * together
        # Of a row's or a column's probes, what they do to one pair more than to the others.
        spread = 1 / ((probes - 1) * probes) * size / max(size - 1, 1)
        rows = without_mean(without_mean(means.by_row, 3), 4)
        columns = without_mean(without_mean(means.by_column, 4), 2)
        self._in_ring += weight**2 * (spread * (_gram(rows) + _gram(columns)) - together)

    def _in_range(self, pairs: Small) -> Small:
        """A unit for the pairs of each moment in which they are in the range of float32."""
        largest = np.abs(pairs).reshape(len(pairs), -1).max(axis=1)
        unknown = self._units == 0
        self._units[unknown] = largest[unknown]
        units: Small = np.where(self._units > 0, self._units, 1.0).reshape(-1, *[1] * (pairs.ndim - 1))
        return units

    def parts(self) -> list[Part]:
        """The moments."""
        count, places = len(self._values), self._ring.places
        probes = self._influence.shape[3]
        influence = self._influence.reshape(count, -1, probes)[:, places]
        own = self._own.reshape(count, -1)[:, places]
        return [
            Part(
                float(self._values[p]),
                influence[p].T.copy(),
                own[p] if probes == 2 else None,
                self._pairs[p] if self._ring.offsets else None,
                float(self._units[p]),
            )
            for p in range(count)
        ]

    def counted(self) -> Counted:
        """What is seen twice."""
        return Counted(self._twice, self._in_ring, self._within)


def _within(same: Small, means: Small, mean: Small) -> Small:
    """The variance of what a sample's own probes make together, summed over samples, shape (P, P).

    Args:
        same: Products of a sample's probes, shape (P, nb, q, m, m).
        means: Their rows' sums over m-2, shape (P, nb, q, m).
        mean: That of the pairs, shape (P, nb, q).
    """
    probes = same.shape[-1]
    left = same - means[..., :, None] - means[..., None, :] + (mean * probes / (probes - 2))[..., None, None]
    index = np.arange(probes)
    left[..., index, index] = 0
    variance: Small = 2 * _gram(left) / (probes * (probes - 3)) / (probes * (probes - 1))
    return variance


@dataclass(frozen=True, eq=False)
class _Means:
    """Products of shape (P, nb, q, m, q, m), and their means.

    Attributes:
        products: As they are.
        by_row: Over the columns' probes, shape (P, nb, q, m, q).
        by_column: Over the rows' probes, shape (P, nb, q, q, m).
        pairs: Over both, shape (P, nb, q, q).
    """

    products: Small
    by_row: Small
    by_column: Small
    pairs: Small

    @classmethod
    def of(cls, products: Small) -> _Means:
        """The means, by products with ones, which are quicker than sums of a few numbers."""
        probes = products.shape[3]
        by_row = (products.reshape(-1, probes) @ np.full(probes, 1 / probes)).reshape(products.shape[:-1])
        by_column = products.mean(axis=3)
        return cls(products, by_row, by_column, by_row.mean(axis=3))

    def interaction(self) -> Small:
        """Inner products of what two probes make together beyond what each does, shape (P, P)."""
        probes = self.products.shape[3]
        one = probes * (_gram(self.by_row) + _gram(self.by_column))
        found: Small = _gram(self.products) - one + probes**2 * _gram(self.pairs)
        return found
