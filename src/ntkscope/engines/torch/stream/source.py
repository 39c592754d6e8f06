"""One model on batches that come in turn: an engine for each, made on demand and dropped again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.kernel import TorchEngine
from ntkscope.engines.torch.samples.axes import SampleAxes
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.traced import TorchSamples
from ntkscope.engines.torch.stream.batches import Batches, Reader, moved
from ntkscope.operators.ledger import Ledger

__all__ = ["Stream", "samples_of"]


class _Share(Ledger):
    """The ledger of one batch: its products are a part of those of the whole set.

    Args:
        whole: The ledger of the set.
        part: The batch's share of the samples.
    """

    def __init__(self, whole: Ledger, part: float) -> None:
        super().__init__()
        self._whole, self._part = whole, part

    def add(self, *, products: int = 0, vjps: float = 0.0, jvps: float = 0.0) -> None:
        """Enters what has just run on the batch."""
        self._whole.add(vjps=vjps * self._part, jvps=jvps * self._part)


class Stream:
    """A model on data that comes in batches.

    Nothing of a batch is kept but its state and the structure of its graph.

    Args:
        batches: The data.
        make: Makes the engine of the first batch.

    Raises:
        ValueError: If samples are coupled within a batch, or batches do not fit together.

    Attributes:
        ledger: Where products are entered; those of a batch count in part.
        states: The state of each batch.
        axes: Where the samples lie in the state of the whole set.
        first: The engine of the first batch, without its samples.
        first_sizes: Its counts.
        starts: Where the samples of each batch start, and where the last ones end.
    """

    def __init__(self, batches: Batches, make: Callable[[Any], TorchEngine]) -> None:
        self.data = batches
        self.ledger = Ledger()
        first: TorchEngine | None = None
        self.states: list[Tensor] = []
        for inputs in self.data.first_pass():
            if first is None:
                first = make(inputs)
                self.states.append(first.state)
                continue
            state = first.function.on(moved(inputs, first.device)).state
            self.states.append(state)
        assert first is not None
        samples = first.samples()
        if not isinstance(samples, TorchSamples):
            raise ValueError(
                f"data that streams needs samples that are treated on their own: {samples.reason}; name the "
                "samples' axis by batch_dim=, or pass one batch"
            )
        self.axes = _axes_of(samples.jacobian.axes, self.states)
        self.starts = _starts([state.numel() // samples.outputs for state in self.states])
        self._structures: dict[int, SampleJacobian] = {}
        self.first_sizes = first.sizes()
        # No activations of the first batch are kept.
        first._samples = None
        self.first = first

    @property
    def batches(self) -> tuple[int, ...]:
        """Samples in each batch."""
        return tuple(stop - start for start, stop in zip(self.starts, self.starts[1:], strict=False))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the state of the whole set."""
        shape = list(self.states[0].shape)
        if shape:
            shape[self.axes.state_axis] = sum(state.shape[self.axes.state_axis] for state in self.states)
        return tuple(shape)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p)."""
        return math.prod(self.output_shape), self.first.shape[1]

    def at(self, model: nn.Module) -> Stream:
        """The same data with another moment of the model."""
        return Stream(self.data, lambda batch: self.first.at(model))

    def reader(self) -> Reader:
        """A place in the data, to read on from."""
        return Reader(self.data)

    def visit(self, number: int, reader: Reader) -> TorchEngine:
        """The engine of one batch, with its samples; its structure is checked at the first visit.

        Raises:
            ValueError: If its samples are coupled.
        """
        batch = self.batches[number]
        ledger = _Share(self.ledger, batch / self.axes.batch)
        inputs = moved(reader.get(number), self.first.device)
        engine = self.first.on(inputs, ledger, self.states[number])
        if number in self._structures:
            engine.with_structure(self._structures[number])
            return engine
        samples = engine.samples()
        if not isinstance(samples, TorchSamples):
            raise ValueError(
                f"batch {number} of the data has samples that cannot be treated on their own: "
                f"{samples.reason}; leave it out, or pass one batch"
            )
        axes = samples.jacobian.axes
        is_same = axes.state_axis == self.axes.state_axis or axes.batch == 1
        if axes.batch != batch or not is_same:
            raise ValueError(
                f"batch {number} of the data has its samples along another axis of the state than the first; "
                "name the samples' axis by batch_dim="
            )
        self._structures[number] = samples.jacobian.stripped()
        return engine

    def visits(self) -> Iterator[tuple[TorchEngine, Tensor]]:
        """All batches in order, with the places of their states in that of the whole set."""
        reader = self.reader()
        for number in range(len(self.batches)):
            engine = self.visit(number, reader)
            yield engine, self.positions(number, engine)

    def positions(self, number: int, engine: TorchEngine) -> Tensor:
        """Where the entries of a batch's flattened state stand in that of the whole set: shape (n_b,)."""
        whole = self.axes.state_index()[self.starts[number] : self.starts[number + 1]]
        own = samples_of(engine).jacobian.axes.state_index()
        places = torch.empty(own.numel(), dtype=torch.int64)
        places[own.reshape(-1)] = whole.reshape(-1)
        return places


def samples_of(engine: TorchEngine) -> TorchSamples:
    """The samples of an engine that was visited."""
    samples = engine.samples()
    assert isinstance(samples, TorchSamples)
    return samples


def _axes_of(one: SampleAxes, states: list[Tensor]) -> SampleAxes:
    """Where the samples of all batches together lie in the state of all of them."""
    shape = tuple(states[0].shape)
    axis = one.state_axis

    def apart(state: Tensor) -> list[int]:
        return [size for place, size in enumerate(state.shape) if place != axis]

    for number, state in enumerate(states):
        if apart(state) != apart(states[0]):
            raise ValueError(
                f"batch {number} of the data gives a state of shape {tuple(state.shape)}, and the first one "
                f"{shape}; bring all samples to one shape (padding), or watch a state that has one"
            )
    if not shape and len(states) > 1:
        raise ValueError(
            "a batch of the data gives a single number; watch a state that has an axis of samples"
        )
    batch = sum(state.shape[axis] // one.state_shape[axis] for state in states) if shape else 1
    return dataclasses.replace(one, batch=batch)


def _starts(batches: list[int]) -> list[int]:
    starts = [0]
    for batch in batches:
        starts.append(starts[-1] + batch)
    return starts
