"""The samples of data that streams: every batch's in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.base import Directions, SampleParts
from ntkscope.engines.torch.kernel import TorchEngine
from ntkscope.engines.torch.samples.inner_products import kernel_inner_products
from ntkscope.engines.torch.stream.parts import StreamParts
from ntkscope.engines.torch.stream.passes import InPasses
from ntkscope.engines.torch.stream.probed import StreamProbed
from ntkscope.engines.torch.stream.rows import StreamRows
from ntkscope.engines.torch.stream.source import Stream, samples_of
from ntkscope.operators.space import Small

__all__ = ["StreamSamples"]


_NO_FORWARD = (
    "method 'per-sample-forward' is not there for data that streams; "
    "use method='per-sample', or pass one batch"
)


_NO_PARTS = (
    "partial traces that keep the axis of samples are not there for data that streams; pass one batch of it, "
    "or keep other axes"
)


class StreamSamples(InPasses):
    """The Jacobian of every sample, as :class:`ntkscope.engines.base.Samples` describes it.

    Args:
        stream: The model and its data.
        budget: Bytes that one step of work may take.
    """

    def __init__(self, stream: Stream, budget: int) -> None:
        super().__init__(stream)
        self._budget = budget

    @property
    def outputs(self) -> int:
        """The size of one sample's state."""
        return self._stream.shape[0] // self.batch

    def state_index(self) -> NDArray[np.int64]:
        """As :meth:`ntkscope.engines.base.Samples.state_index`."""
        return np.asarray(self._stream.axes.state_index().numpy(), dtype=np.int64)

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """‖J_bᵀz_b‖² for probes of shape (n, k), to (k, B), by one pass over the data."""

        def of_batch(engine: TorchEngine, number: int) -> Small:
            return samples_of(engine).squares(self.own(probes, engine, number))

        return np.concatenate(self.of_batches("squares of a batch", of_batch), axis=1)

    def forward_squares(self, count: int, directions: Directions) -> Small:
        """Not of data that streams.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(_NO_FORWARD)

    @property
    def direction_size(self) -> int:
        """As :meth:`forward_squares`."""
        raise NotImplementedError(_NO_FORWARD)

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every sample, by one-hot probes, in one pass."""
        return self.in_one_pass(report, lambda engine, here: samples_of(engine).exact_squares(here))

    def exact_moments(self, others: Sequence[Any], report: Callable[[int, int], None]) -> tuple[Small, Small]:
        """Traces and inner products in tiles over all pairs of batches, by layer factors."""
        sources = [StreamRows(samples._stream) for samples in (self, *others)]
        return kernel_inner_products(sources, self._budget, report)

    def probed(self) -> StreamProbed:
        """As :meth:`ntkscope.engines.base.Samples.probed`."""
        return StreamProbed(self._stream, self._budget)

    def output_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖∂h_bi/∂θ‖² of every output of every sample, by one-hot probes, in one pass: shape (B, s)."""
        return self.in_one_pass(report, lambda engine, here: samples_of(engine).output_squares(here))

    def in_parts(self, parts: Mapping[str, int]) -> SampleParts:
        """The same by parts of the parameters."""
        return StreamParts(self._stream, parts)

    def grams(self, probes: NDArray[np.int8], rows: int, *, across: bool) -> Small:
        """As :meth:`ntkscope.engines.base.Samples.grams`, summed over samples, by one pass."""
        _check_summed(across)

        def of_batch(engine: TorchEngine, number: int) -> Small:
            return samples_of(engine).grams(self.own(probes, engine, number), rows, across=False)

        return _sum(self.of_batches("grams of a batch", of_batch))

    def output_grams(
        self, outputs: NDArray[np.int64], *, across: bool, report: Callable[[int, int], None]
    ) -> Small:
        """As :meth:`ntkscope.engines.base.Samples.output_grams`, summed over samples, by one pass."""
        _check_summed(across)

        def of_batch(engine: TorchEngine, number: int) -> Small:
            def here(done: int, total: int) -> None:
                report(
                    self._stream.starts[number] * total + self._stream.batches[number] * done,
                    self.batch * total,
                )

            return samples_of(engine).output_grams(outputs, across=False, report=here)

        return _sum(self.of_batches("grams of outputs of a batch", of_batch))

    def forward(self, count: int, directions: Directions) -> Small:
        """None, of data that streams."""
        raise ValueError(_NO_PARTS)

    def is_comparable(self, other: Any) -> bool:
        """Whether the other's samples come in the same batches, along the same axes of the state."""
        return isinstance(other, StreamSamples) and (
            self._stream.batches,
            self._stream.axes.state_axis,
            self._stream.axes.state_shape,
        ) == (other._stream.batches, other._stream.axes.state_axis, other._stream.axes.state_shape)

    def describe(self) -> str:
        """What is known of the model, in words."""
        batches = self._stream.batches
        known = samples_of(self._stream.visit(0, self._stream.reader())).describe()
        return f"{self.batch:,} samples in {len(batches):,} batches, of which the first: {known}"


def _check_summed(across: bool) -> None:
    if across:
        raise ValueError(_NO_PARTS)


def _sum(parts: list[Small]) -> Small:
    total: Small = np.sum(parts, axis=0)
    return total
