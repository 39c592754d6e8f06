"""The rows of J of data that streams, in factors by layer, batch after batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from ntkscope.engines.torch.samples.tiles import RowBlock, SampleRows
from ntkscope.engines.torch.stream.source import Stream, samples_of

__all__ = ["StreamRows"]


class StreamRows:
    """Rows by the per-sample structure, as a source of blocks for exact tiles.

    Blocks never hold samples of two batches. The blocks after a panel, which fills the memory budget, are
    computed again for every panel: a pass over the data each.

    Args:
        stream: The model and its data.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        reader = stream.reader()
        first = SampleRows(samples_of(stream.visit(0, reader)).jacobian)
        self.rows = first.rows
        self._outputs = samples_of(stream.visit(0, reader)).outputs

    def with_rows(self, rows: int) -> StreamRows:
        """The same rows in blocks of so many."""
        twin = copy.copy(self)
        twin.rows = rows
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """The state's."""
        return self._stream.first.dtype

    def _blocks_in(self, batch: int) -> int:
        """Blocks of a batch of so many samples, as :class:`SampleRows` cuts them."""
        outputs = min(self._outputs, self.rows)
        samples = max(1, min(batch, self.rows // outputs))
        return -(-batch // samples) * -(-self._outputs // outputs)

    def __len__(self) -> int:
        return sum(map(self._blocks_in, self._stream.batches))

    def blocks(self, start: int, stop: int) -> Iterator[RowBlock]:
        """Blocks start..stop-1, computed anew by a pass over the batches that they lie in."""
        reader = self._stream.reader()
        before = 0
        for number, batch in enumerate(self._stream.batches):
            count = self._blocks_in(batch)
            first, last = max(start - before, 0), min(stop - before, count)
            before += count
            if first >= last:
                continue
            engine = self._stream.visit(number, reader)
            places = self._stream.positions(number, engine)
            rows = SampleRows(samples_of(engine).jacobian).with_rows(self.rows)
            for block in rows.blocks(first, last):
                yield RowBlock(places[block.index], block.factors)
