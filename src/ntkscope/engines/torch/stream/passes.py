"""Passes over data that streams, in which something is found of every batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.torch.kernel import TorchEngine
from ntkscope.engines.torch.stream.source import Stream
from ntkscope.journal import recorded
from ntkscope.operators.space import Small

__all__ = ["InPasses", "Report"]

#: Called with (done, in all).
Report: TypeAlias = Callable[[int, int], None]


class InPasses:
    """What is known of batches in turn.

    Args:
        stream: The model and its data.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def batch(self) -> int:
        """B, the number of samples in all batches."""
        return self._stream.axes.batch

    def own(self, probes: NDArray[Any], engine: TorchEngine, number: int) -> NDArray[Any]:
        """A batch's rows of probes over the state of the whole set."""
        rows: NDArray[Any] = probes[self._stream.positions(number, engine).numpy()]
        return rows

    def of_batches(self, name: str, work: Callable[[TorchEngine, int], Small]) -> list[Small]:
        """What is known of each batch, in one pass; of what is kept in a file the data is only read.

        Args:
            name: Of the work, where it is kept.
            work: Takes a batch's engine and number.
        """
        reader = self._stream.reader()

        def visit(number: int) -> Small:
            return work(self._stream.visit(number, reader), number)

        count = len(self._stream.batches)
        return [recorded(name, partial(visit, number), self._stream.ledger) for number in range(count)]

    def in_one_pass(self, report: Report, work: Callable[[TorchEngine, Report], Small]) -> Small:
        """What is known of every sample, from the batches in turn; the report counts thousandths."""

        def of_batch(engine: TorchEngine, number: int) -> Small:
            before, batch = self._stream.starts[number], self._stream.batches[number]

            def here(done: int, total: int) -> None:
                report(round(1000 * (before + batch * done / max(total, 1))), 1000 * self.batch)

            return work(engine, here)

        return np.concatenate(self.of_batches("numbers of a batch", of_batch))
