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
        ring: The pairs at the offsets, means over probes, shape (c, nb, q, q), in float32 and in units of
            ``unit``; ``None`` for a trace.
        unit: What they count.
    """

    value: float
    influence: Small
    own: Small | None = None
    ring: NDArray[np.float32] | None = None
    unit: float = 1.0


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


def without_mean(x: Small, axis: int) -> Small:
    """Numbers less their mean along an axis."""
    less: Small = x - x.mean(axis=axis, keepdims=True)
    return less
