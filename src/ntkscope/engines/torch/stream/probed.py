"""Gradients of the samples of data that streams, for random probes, around a ring of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ntkscope.engines.torch.gradients.sides import widened
from ntkscope.engines.torch.samples.probed import Rows, Sides
from ntkscope.engines.torch.stream.batches import Reader
from ntkscope.engines.torch.stream.source import Stream, samples_of
from ntkscope.journal import recorded
from ntkscope.operators.space import Small
from ntkscope.runs.ring import RingProducts

__all__ = ["StreamProbed"]

#: The gradients of a batch in blocks of samples, by parameter group.
_Cuts: TypeAlias = "list[Rows | Sides]"


@dataclass(frozen=True)
class _Place:
    """One batch on the ring.

    Attributes:
        blocks: Its blocks.
        order: Its samples in the order of the ring, counted within the batch.
    """

    blocks: range
    order: NDArray[np.int64]


class StreamProbed:
    """J_bᵀz_{b,i} as :class:`ntkscope.runs.ring.ProbedSamples`; two batches' gradients at a time.

    Args:
        stream: The model and its data.
        budget: Bytes of which half may keep batches' gradients for the next time that they are needed.
    """

    def __init__(self, stream: Stream, budget: int) -> None:
        self._stream = stream
        self._budget = budget
        self._signs: list[NDArray[Any]] = []

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self._stream.axes.batch

    @property
    def batches(self) -> tuple[int, ...]:
        """Samples in each batch."""
        return self._stream.batches

    @property
    def size(self) -> int:
        """N, the size of the state."""
        return self._stream.shape[0]

    @property
    def epsilon(self) -> float:
        """Relative rounding error of the products."""
        return float(torch.finfo(self._stream.first.dtype).eps)

    def add(self, signs: NDArray[Any]) -> None:
        """More probes, of shape (n, k); they are pulled back when a ring asks for them."""
        self._signs.append(signs)

    def by_layer(self) -> Mapping[str, RingProducts]:
        """Not of data that streams.

        Raises:
            ValueError: Always.
        """
        raise ValueError("layers are not kept apart for data that streams; pass one batch of it")

    def ring(
        self, order: NDArray[np.int64], block: int, offsets: Sequence[int], room: int
    ) -> Iterator[tuple[int, int, Small]]:
        """Inner products around the ring, as :meth:`ntkscope.runs.ring.ProbedSamples.ring`.

        For every offset a pass over the data, with a second one beside it that is so far ahead: each
        batch is multiplied with itself and with the one or two that its blocks meet.
        """
        signs = np.concatenate(self._signs, axis=1)
        places = self._places(order, block)
        gradients = _Gradients(self._stream, signs, places, block, self._budget // 2)
        total = places[-1].blocks.stop
        step = max(1, room // (block * signs.shape[1]) ** 2)
        for offset in offsets:
            pair = _Pair(gradients, block, signs.shape[1])
            for this, place in enumerate(places):
                for other, ours, theirs in _meetings(place.blocks, offset, places, total):
                    for start in range(0, len(ours), step):
                        here, there = ours[start : start + step], theirs[start : start + step]
                        tile = partial(pair.tile, this, here, other, there)
                        first = place.blocks.start + here.start
                        yield offset, first, recorded("tile of a ring", tile, self._stream.ledger)

    def _places(self, order: NDArray[np.int64], block: int) -> list[_Place]:
        places, start = [], 0
        for begin, batch in zip(self._stream.starts, self.batches, strict=False):
            stop = start + -(-batch // block)
            members = order[start * block : stop * block]
            places.append(_Place(range(start, stop), members[members >= 0] - begin))
            start = stop
        return places


class _Gradients:
    """The gradients of batches in blocks, computed when they are needed or kept while there is room."""

    def __init__(
        self, stream: Stream, signs: NDArray[Any], places: Sequence[_Place], block: int, room: int
    ) -> None:
        self.stream, self.signs, self.places, self.block = stream, signs, places, block
        self.kept: dict[int, _Cuts] = {}
        self.room = room

    def reader(self) -> _GradientReader:
        """A place in the data."""
        return _GradientReader(self, self.stream.reader())


class _Pair:
    """The gradients of the two batches that meet, each read on to when it is wanted."""

    def __init__(self, gradients: _Gradients, block: int, probes: int) -> None:
        self._block, self._probes = block, probes
        self._ahead, self._behind = gradients.reader(), gradients.reader()
        self._this = self._other = -1
        self._left: _Cuts = []
        self._right: _Cuts = []

    def at(self, this: int, other: int) -> tuple[_Cuts, _Cuts]:
        """Those of two batches."""
        if this != self._this:
            self._left = self._behind.get(this)
            self._this = this
        if other != self._other:
            # The old ones go before the new ones come.
            self._right = []
            self._right = self._left if other == this else self._ahead.get(other)
            self._other = other
        return self._left, self._right

    def tile(self, this: int, ours: range, other: int, theirs: range) -> Small:
        """Inner products of blocks of both."""
        left, right = self.at(this, other)
        return _tile(left, ours, right, theirs, self._block, self._probes)


class _GradientReader:
    def __init__(self, gradients: _Gradients, reader: Reader) -> None:
        self._all = gradients
        self._reader = reader

    def get(self, number: int) -> _Cuts:
        """Those of one batch."""
        every = self._all
        if number in every.kept:
            return every.kept[number]
        engine = every.stream.visit(number, self._reader)
        probed = samples_of(engine).probed()
        probed.add(every.signs[every.stream.positions(number, engine).numpy()])
        cuts = probed.cuts(every.places[number].order, every.block)
        size = sum(cut.nbytes for cut in cuts)
        # The first ones: of those used last, a ring that is larger than the room finds none again.
        if size <= every.room:
            every.room -= size
            every.kept[number] = cuts
        return cuts


def _meetings(
    blocks: range, offset: int, places: Sequence[_Place], total: int
) -> Iterator[tuple[int, range, range]]:
    """The batches that some blocks meet at an offset, and which of theirs: (number, ours, theirs)."""
    start = blocks.start
    while start < blocks.stop:
        target = (start + offset) % total
        number = next(n for n, place in enumerate(places) if target in place.blocks)
        theirs = places[number].blocks
        count = min(blocks.stop - start, theirs.stop - target)
        ours = start - blocks.start
        yield number, range(ours, ours + count), range(target - theirs.start, target - theirs.start + count)
        start += count


def _tile(left: _Cuts, ours: range, right: _Cuts, theirs: range, block: int, probes: int) -> Small:
    """Inner products of blocks, one with one: shape (count, q, k, q, k)."""
    shape = (len(ours), block, probes, block, probes)
    if not left:
        return np.zeros(shape)
    values = left[0].values if isinstance(left[0], Rows) else left[0].delta
    total = widened(torch.zeros(shape, dtype=values.dtype, device=values.device))
    for one, other in zip(left, right, strict=True):
        one.beside(ours, other, theirs).add(0, len(ours), total)  # type: ignore[arg-type]
    return np.asarray(total.to("cpu", torch.float64).numpy())
