"""The samples of data that streams by parts of the parameters: every batch's in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.torch.kernel import TorchEngine
from ntkscope.engines.torch.samples.parts import PartsOfSamples
from ntkscope.engines.torch.stream.passes import InPasses, Report
from ntkscope.engines.torch.stream.source import Stream, samples_of
from ntkscope.operators.space import Small

__all__ = ["StreamParts"]

_NO_PAIRS = (
    "norms and alignments of parts are not there for data that streams; split the trace, or pass one batch"
)


class StreamParts(InPasses):
    """J_b of every sample by parts, as :class:`ntkscope.engines.base.SampleParts` describes it.

    Args:
        stream: The model and its data.
        parts: The part of every parameter.
    """

    def __init__(self, stream: Stream, parts: Mapping[str, int]) -> None:
        super().__init__(stream)
        self._parts = parts

    def _of(self, engine: TorchEngine) -> PartsOfSamples:
        return samples_of(engine).in_parts(self._parts)

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """As :meth:`ntkscope.engines.base.SampleParts.squares`: (n, k) to (k, B, L), by one pass."""

        def of_batch(engine: TorchEngine, number: int) -> Small:
            return self._of(engine).squares(self.own(probes, engine, number))

        return np.concatenate(self.of_batches("squares of parts", of_batch), axis=1)

    def exact_squares(self, report: Report) -> Small:
        """‖J_b‖²_F of every part, by one pass: shape (B, L)."""
        return self.in_one_pass(report, lambda engine, here: self._of(engine).exact_squares(here))

    def exact_moments(self, others: Sequence[Any], report: Callable[[int, int], None]) -> tuple[Small, Small]:
        """None, of data that streams."""
        raise ValueError(_NO_PAIRS)

    def probed(self) -> Any:
        """None, of data that streams."""
        raise ValueError(_NO_PAIRS)
