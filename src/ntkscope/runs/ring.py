"""The ring of blocks of samples: which pairs are taken, and what is summed of their products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Small

__all__ = [
    "Counted",
    "Part",
    "ProbedSamples",
    "Ring",
    "RingProducts",
    "RingSums",
    "check_at_once",
    "without_mean",
]

#: Samples in a block of the ring, and offsets around it for every probe.
_BLOCK = 16
_OFFSETS = 2
_MOST_OFFSETS = 16
# Samples in a block times probes, at most.
_ROWS = 512
_STREAM = 23


class RingProducts(Protocol):
    """Inner products T[(b,i),(b',j)] of the probes of samples, around a ring."""

    @property
    def epsilon(self) -> float:
        """Relative rounding error of the products."""
        ...

    def ring(
        self, order: NDArray[np.int64], block: int, offsets: Sequence[int], room: int
    ) -> Iterator[tuple[int, int, Small]]:
        """Inner products around the ring: (offset, first block u, array of shape (blocks, q, k, q, k)).

        Entry [v, s, i, t, j] is that of probe i of sample s of block u + v, and probe j of sample t of
        block u + v + offset, for the samples in the given order, cut into blocks of q = ``block``; what is
        left over of the last block is zero. An array holds about ``room`` numbers; for every offset in
        order they come block after block, the same for all kernels of the same samples.
        """
        ...


class ProbedSamples(RingProducts, Protocol):
    """The gradients J_bᵀz_{b,i} of every sample for probes that can be added to."""

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        ...

    @property
    def batches(self) -> tuple[int, ...]:
        """Samples in each of the batches that they come in, one after the other; (B,) if all at once."""
        ...

    @property
    def size(self) -> int:
        """N, the size of the state."""
        ...

    def add(self, signs: NDArray[Any]) -> None:
        """More probes over the whole state, signs mostly, of shape (n, k): k VJPs."""
        ...

    def by_layer(self) -> Mapping[str, RingProducts]:
        """The products of each layer's parameters alone, by the layer's name; they sum up to these."""
        ...


@dataclass(frozen=True)
class Ring:
    """Which pairs of samples are taken.

    Attributes:
        order: The samples one after the other; -1 where a block has none.
        block: q, places in a block.
        offsets: Of the pairs of blocks, without 0.
        is_shuffled: Whether any sample may stand next to any other, so that what is left of pairs beyond
            their rows and columns adds up at random.
    """

    order: NDArray[np.int64]
    block: int
    offsets: tuple[int, ...]
    is_shuffled: bool = True

    @classmethod
    def of(cls, batch: int, probes: int, seed: int) -> Ring:
        """As many offsets as probes; all pairs where that is no more."""
        # Many probes of few samples: a tile of blocks is no larger than one of few probes.
        block = min(batch, _BLOCK, max(2, _ROWS // probes))
        blocks = -(-batch // block)
        generator = np.random.Generator(np.random.Philox(key=[seed, _STREAM]))
        # The same order and the same sequence of offsets, however many of them are taken.
        order = generator.permutation(batch)
        offsets = 1 + generator.permutation(max(0, blocks - 1))
        wanted = blocks - 1 if blocks <= 5 else min(blocks - 1, _OFFSETS * probes, _MOST_OFFSETS)
        return cls(order, block, tuple(int(o) for o in offsets[:wanted]))

    @classmethod
    def of_batches(cls, batches: Sequence[int], probes: int, seed: int) -> Ring:
        """The same where samples come in batches: shuffled within each of them, whose blocks are its own."""
        if len(batches) == 1:
            return cls.of(batches[0], probes, seed)
        largest = max(batches)
        block = min(largest, _BLOCK, max(2, _ROWS // probes))
        # Blocks of one size that leave few places empty.
        block = -(-largest // -(-largest // block))
        generator = np.random.Generator(np.random.Philox(key=[seed, _STREAM]))
        parts, start = [], 0
        for batch in batches:
            part = np.full(-(-batch // block) * block, -1)
            part[:batch] = start + generator.permutation(batch)
            parts.append(part)
            start += batch
        order = np.concatenate(parts)
        blocks = len(order) // block
        offsets = 1 + generator.permutation(max(0, blocks - 1))
        wanted = blocks - 1 if blocks <= 5 else min(blocks - 1, _OFFSETS * probes, _MOST_OFFSETS)
        return cls(order, block, tuple(int(o) for o in offsets[:wanted]), is_shuffled=False)

    @classmethod
    def complete(cls, batch: int, probes: int) -> Ring:
        """All pairs, of the samples as they come."""
        block = min(batch, _BLOCK, max(2, _ROWS // probes))
        return cls(np.arange(batch), block, tuple(range(1, -(-batch // block))))

    def is_same(self, other: Ring) -> bool:
        """Whether the same pairs are taken, in the same places."""
        alike = (self.block, self.offsets) == (other.block, other.offsets)
        return alike and np.array_equal(self.order, other.order)

    @property
    def places(self) -> NDArray[np.int64]:
        """Places of the blocks that hold a sample, shape (B,)."""
        return np.flatnonzero(self.order >= 0)

    @property
    def blocks(self) -> int:
        """Nb."""
        return -(-len(self.order) // self.block)

    @property
    def weight(self) -> float:
        """What a pair at an offset stands for."""
        return (self.blocks - 1) / len(self.offsets) if self.offsets else 0.0

    @property
    def missing(self) -> float:
        """The share of offsets that are not taken."""
        return 1 - len(self.offsets) / (self.blocks - 1) if self.offsets else 0.0


@dataclass(frozen=True, eq=False)
class Part:
    """One moment: its value, and where its error comes from.

    Attributes:
        value: The moment.
        influence: Of every probe of every sample, shape (m, B): Var = Σ_b Var_i / m.
        own: Where two probes a sample cannot tell: the samples' own pair, shape (B,); else ``None``.
        ring: The pairs at the offsets, means over probes, shape (c, nb, q, q); ``None`` for a trace.
    """

    value: float
    influence: Small
    own: Small | None = None
    ring: Small | None = None


@dataclass(frozen=True, eq=False)
class Counted:
    """Quadratic forms over the pairs of kernels, shape (P, P): parts of the variance that are seen twice.

    Attributes:
        twice: What two probes of two samples make together, which both of them show as their influence.
        in_ring: What the probes add to the pairs at the offsets, which is not the choice of offsets.
        within: What two probes of one sample make together; the variance is no smaller than both.
    """

    twice: Small
    in_ring: Small
    within: Small


def check_at_once(probed: ProbedSamples, what: str) -> None:
    """Refuses samples that come in batches.

    Args:
        probed: The samples.
        what: What is wanted of them, for the error.

    Raises:
        ValueError: If they do.
    """
    if len(probed.batches) > 1:
        raise ValueError(
            f"{what} is not there for data that streams, found {len(probed.batches):,} batches; pass one "
            "batch of it"
        )


def _gram(x: Small) -> Small:
    """Inner products over all axes but the first."""
    flat = x.reshape(len(x), -1)
    products: Small = flat @ flat.T
    return products


def without_mean(x: Small, axis: int) -> Small:
    """Numbers less their mean along an axis."""
    less: Small = x - x.mean(axis=axis, keepdims=True)
    return less


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
        self._pairs = np.zeros(shape)
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
        self._pairs[:, place, here] = means.pairs
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
