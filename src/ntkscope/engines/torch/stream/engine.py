"""The engine of data that streams: what :class:`TorchEngine` offers of one batch, of all batches in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.engines.base import Machine, Sizes
from ntkscope.engines.torch import machine
from ntkscope.engines.torch.kernel import TorchEngine
from ntkscope.engines.torch.maps import ForwardMap, KernelMap
from ntkscope.engines.torch.memory import DEFAULT_BUDGET
from ntkscope.engines.torch.modes import undisturbed
from ntkscope.engines.torch.own import unwrapped
from ntkscope.engines.torch.samples.axes import BatchDim
from ntkscope.engines.torch.samples.tiles import dense_kernel
from ntkscope.engines.torch.stream.batches import Batches
from ntkscope.engines.torch.stream.products import StreamJacobian
from ntkscope.engines.torch.stream.rows import StreamRows
from ntkscope.engines.torch.stream.samples import StreamSamples
from ntkscope.engines.torch.stream.source import Stream
from ntkscope.engines.torch.vectors import StateVectors

__all__ = ["StreamEngine"]


class StreamEngine(StateVectors):
    """One torch module on data that comes batch by batch, as :class:`ntkscope.engines.base.Engine`.

    Args:
        model: The module.
        inputs: A ``DataLoader``, or any iterable that can be run again.
        outputs: As of :class:`TorchEngine`, and so are the others.
        layer: Name of a submodule whose output is the state.
        batch_dim: The axis of the inputs that holds the samples.
        memory_budget: Bytes that one step of work may take.
        chunk_size: Vectors in a chunk.
        loss: None: what weights the state would differ from batch to batch.
        reduction: Of none.
        class_dim: Of none.
        scale: As of :class:`TorchEngine`.

    Raises:
        TypeError: As :class:`TorchEngine`, and if the data can be run only once.
        ValueError: As :class:`TorchEngine`, and for a loss, if samples are coupled within a batch, or a
            pass brings other data than the first.
        RuntimeError: If the loader raises an exception.
    """

    #: Whether a run may be kept in a file, and gone on with.
    keeps_work = True

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        outputs: Callable[[Any], Tensor] | None = None,
        layer: str | None = None,
        batch_dim: BatchDim | None = 0,
        memory_budget: int = DEFAULT_BUDGET,
        chunk_size: int | None = None,
        loss: Any = None,
        reduction: str = "mean",
        class_dim: int | None = None,
        scale: Any = None,
    ) -> None:
        if loss is not None:
            raise ValueError(
                "loss= weights the state of one batch, and this data comes in batches; pass one batch, or "
                "leave loss= out"
            )

        def first(batch: Any) -> TorchEngine:
            return TorchEngine(
                model,
                batch,
                outputs=outputs,
                layer=layer,
                batch_dim=batch_dim,
                memory_budget=memory_budget,
                chunk_size=chunk_size,
                scale=scale,
            )

        self._take(Stream(Batches(inputs, unwrapped(model).forward), first), memory_budget)

    def _take(self, stream: Stream, budget: int) -> None:
        self.stream = stream
        self.ledger = stream.ledger
        self.budget = budget

    # What it is.

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p)."""
        return self.stream.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the state of the whole set."""
        return self.stream.output_shape

    @property
    def state(self) -> Tensor:
        """The state of the whole set."""
        return torch.cat(self.stream.states, self.stream.axes.state_axis)

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype, in which the products run."""
        return self.stream.first.dtype

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.stream.first.device

    def session(self) -> AbstractContextManager[None]:
        """One thread at a time, outside of inference mode."""
        return undisturbed()

    # What an engine offers.

    def map(self) -> ForwardMap:
        """J, shape (n, p)."""
        return ForwardMap(StreamJacobian(self.stream))

    def kernel_map(self) -> KernelMap:
        """K = JJᵀ: a pass over the data for Jᵀ, and one for J."""
        return KernelMap(StreamJacobian(self.stream))

    def check_forward(self) -> None:
        """As :meth:`ntkscope.engines.base.Engine.check_forward`, on the first batch."""
        self.stream.first.check_forward()

    def samples(self) -> StreamSamples:
        """The Jacobian of every sample on its own."""
        return StreamSamples(self.stream, self.budget)

    def sizes(self, kernels: int = 1) -> Sizes:
        """Counts to plan with: those of the first batch, as many times as it goes into the set."""
        one, times = self.stream.first_sizes, self.stream.axes.batch / self.stream.batches[0]
        return dataclasses.replace(
            one,
            n=self.shape[0],
            batch=self.stream.axes.batch,
            operations=one.operations * len(self.stream.batches),
            elements=round(one.elements * times),
            flops=round(one.flops * times),
            kernels=kernels,
            held=min(self.stream.axes.batch, 2 * max(self.stream.batches)),
        )

    def machine(self) -> Machine:
        """How fast the device is at this dtype."""
        return machine.timed(self.device, self.dtype)

    def dense(self) -> Tensor:
        """K itself, shape (n, n), in tiles."""
        return dense_kernel(StreamRows(self.stream), self.shape[0], self.budget)

    def matrix(self, other: Any) -> Tensor:
        """As :meth:`ntkscope.engines.base.Engine.matrix`."""
        return self.stream.first.matrix(other)

    def other_inputs(self, other: Any) -> str:
        """As :meth:`ntkscope.engines.base.Engine.other_inputs`, batch by batch."""
        if not isinstance(other, StreamEngine):
            return "one comes in batches and one at once"
        if self.stream.batches != other.stream.batches:
            return (
                f"{len(self.stream.batches):,} and {len(other.stream.batches):,} batches, or of other sizes"
            )
        pairs = zip(self.stream.data.digests, other.stream.data.digests, strict=True)
        differing = [number for number, (one, two) in enumerate(pairs) if one != two]
        if not differing:
            return ""
        counts = f"{len(differing):,} of {len(self.stream.batches):,} batches differ"
        return f"{counts}, the first is batch {differing[0]}"

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """As :attr:`ntkscope.engines.base.Engine.parameters`."""
        return self.stream.first.parameters

    def on(self, inputs: Any) -> TorchEngine:
        """As :meth:`ntkscope.engines.base.Engine.on`, for one batch."""
        return self.stream.first.on(inputs)

    def inputs_digest(self) -> str:
        """As :meth:`ntkscope.engines.base.Engine.inputs_digest`."""
        return self.stream.data.digest

    def at(self, model: nn.Module) -> StreamEngine:
        """The same state of the same data with other parameters.

        Raises:
            ValueError: If the state has another shape.
        """
        twin = StreamEngine.__new__(StreamEngine)
        twin._take(self.stream.at(model), self.budget)
        if twin.output_shape != self.output_shape:
            raise ValueError(
                f"the model's state has shape {twin.output_shape} now, expected {self.output_shape}; "
                "make a new NTK of it"
            )
        return twin
