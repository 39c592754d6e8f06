"""The engine of a plain model whose samples are spread over processes, each with a copy of the model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.engines.base import Machine, Refusal, Sizes
from ntkscope.engines.torch.batches import difference
from ntkscope.engines.torch.kernel import TorchEngine
from ntkscope.engines.torch.processes.exchange import Exchange
from ntkscope.engines.torch.processes.maps import Places, SpreadMap
from ntkscope.engines.torch.processes.rows import spread_dense
from ntkscope.engines.torch.processes.samples import SpreadSamples
from ntkscope.engines.torch.processes.session import session_of
from ntkscope.engines.torch.samples.tiles import SampleRows, check_range
from ntkscope.engines.torch.samples.traced import TorchSamples
from ntkscope.engines.torch.vectors import StateVectors

__all__ = ["SpreadEngine"]


class SpreadEngine(StateVectors):
    """One torch module on samples of several processes, as :class:`ntkscope.engines.base.Engine`.

    Samples are numbered one after the other by rank: n, the probes and the numbers that come out are those
    of all of them together. All processes make the same calls in the same order.

    Args:
        model: The module, with the same parameters on each of them.
        inputs: What it is called with: this process's samples.
        exchange: Between the processes.
        **options: As of :class:`TorchEngine`.

    Raises:
        TypeError: As :class:`TorchEngine`.
        ValueError: As :class:`TorchEngine`, for a loss, if samples are coupled, and if the processes'
            parameters, states or structures differ.
    """

    def __init__(self, model: nn.Module, inputs: Any, exchange: Exchange, **options: Any) -> None:
        if options.get("loss") is not None:
            raise ValueError(
                "loss= weights the state of one batch, and these samples are on several processes; measure "
                "on one of them, or leave loss= out"
            )
        self._exchange = exchange
        self._take(exchange.run(lambda: TorchEngine(model, inputs, **options)))

    def _take(self, own: TorchEngine) -> None:
        exchange = self._exchange
        samples = exchange.run(own.samples)
        reasons = exchange.objects(samples.reason if isinstance(samples, Refusal) else "")
        rank = next((rank for rank, reason in enumerate(reasons) if reason), None)
        if isinstance(samples, Refusal) or rank is not None:
            raise ValueError(
                "several processes measure samples that are treated on their own; those of process "
                f"{rank} are not: {reasons[rank or 0]}; name the samples' axis by batch_dim=, or measure on "
                "one process"
            )
        self.local, self._own_samples = own, samples
        self.ledger, self.budget = own.ledger, own.budget
        self._digests = exchange.objects(own.inputs_digest())
        self._check_alike(own, samples)
        axes = samples.jacobian.axes
        exchange.share(axes.batch)
        # Of a single sample no axis is known.
        known = exchange.objects(None if axes.batch == 1 else axes.state_axis)
        axis = next((place for place in known if place is not None), axes.state_axis)
        whole = dataclasses.replace(axes, batch=exchange.batch, state_axis=axis)
        mine = dataclasses.replace(axes, state_axis=axis)
        self._index = whole.state_index()
        places = torch.empty(own.shape[0], dtype=torch.int64)
        own_range = exchange.own
        places[mine.state_index().reshape(-1)] = self._index[own_range.start : own_range.stop].reshape(-1)
        parts = tuple(torch.from_numpy(part) for part in exchange.objects(places.numpy()))
        self._places = Places(exchange, places, parts, sum(map(len, parts)), own.device)
        shape = list(own.output_shape)
        if shape:
            shape[axis] = shape[axis] * exchange.batch // axes.batch
        self._output_shape = tuple(shape)
        self._state: Tensor | None = None
        self._sizes: Sizes | None = None
        self._machine: Machine | None = None

    def _check_alike(self, own: TorchEngine, samples: TorchSamples) -> None:
        """Refuses processes whose models are not copies of each other.

        Raises:
            ValueError: If they are not.
        """
        exchange, jacobian = self._exchange, samples.jacobian
        taps = [use.tap_shape for use in jacobian.graph.uses]
        found = {
            "parameters": _digest_of(own.function.parameters),
            "structures": repr((jacobian.groups, taps, jacobian.axes.state_shape, own.dtype)),
        }
        for name, mine in found.items():
            every = exchange.objects(mine)
            other = next((rank for rank, one in enumerate(every) if one != every[0]), None)
            if other is not None:
                raise ValueError(
                    f"the {name} of process {other} are not those of process 0; give every process the same "
                    "model (one seed, or a checkpoint), and samples of one shape"
                )

    # What it is.

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p), of all processes."""
        return self._places.n, self.local.shape[1]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the state of all processes' samples."""
        return self._output_shape

    @property
    def state(self) -> Tensor:
        """The state of all processes' samples, on each of them."""
        if self._state is None:
            self._state = self._places.joined(self.local.state.reshape(-1)).reshape(self._output_shape)
        return self._state

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype, in which the products run."""
        return self.local.dtype

    @property
    def device(self) -> torch.device:
        """Where this process's state lives."""
        return self.local.device

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """As :attr:`ntkscope.engines.base.Engine.parameters`."""
        return self.local.parameters

    def session(self) -> AbstractContextManager[None]:
        """One thread at a time, outside of inference mode; rank 0 decides when all stop."""
        return session_of(self._exchange)

    # What an engine offers.

    def map(self) -> SpreadMap:
        """J, shape (n, p)."""
        return SpreadMap(self.local.jacobian, self._places, takes_state=False)

    def kernel_map(self) -> SpreadMap:
        """K = JJᵀ."""
        return SpreadMap(self.local.jacobian, self._places)

    def check_forward(self) -> None:
        """As :meth:`ntkscope.engines.base.Engine.check_forward`, on every process."""
        self._exchange.run(self.local.check_forward)

    def samples(self) -> SpreadSamples:
        """The Jacobian of every sample on its own."""
        return SpreadSamples(self._own_samples, self._places, self._index.numpy())

    def sizes(self, kernels: int = 1) -> Sizes:
        """Counts to plan with, the same on every process."""
        if self._sizes is None:
            one = self._exchange.first(self.local.sizes())
            times = self._exchange.batch / self._exchange.counts[0]
            self._sizes = dataclasses.replace(
                one,
                n=self.shape[0],
                batch=self._exchange.batch,
                elements=round(one.elements * times),
                flops=round(one.flops * times),
                held=max(self._exchange.counts),
                budget=min(self._exchange.objects(self.budget)),
            )
        return dataclasses.replace(self._sizes, kernels=kernels)

    def machine(self) -> Machine:
        """How fast all processes are together, if each is as fast as the first."""
        if self._machine is None:
            one, world = self._exchange.first(self.local.machine()), self._exchange.size
            self._machine = dataclasses.replace(one, flops=one.flops * world, elements=one.elements * world)
        return self._machine

    def dense(self) -> Tensor:
        """K itself, shape (n, n), on every process."""
        rows = SampleRows(self._own_samples.jacobian)
        own = self._places.own.to(self.device)
        exact = spread_dense(rows, own, self.shape[0], self._exchange, self.budget)
        check_range(float(exact.abs().amax()), self.dtype)
        return exact.to(self.dtype)

    def matrix(self, other: Any) -> Tensor:
        """None is compared with.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "the kernel of samples on several processes is compared with another such kernel, found a "
            "matrix; use ntkscope.estimators.alignment of to_dense()"
        )

    def other_inputs(self, other: Any) -> str:
        """As :meth:`ntkscope.engines.base.Engine.other_inputs`, the same on every process."""
        if not isinstance(other, SpreadEngine):
            return "one is of samples on several processes and one is not"
        if self._digests == other._digests:
            return ""
        own = difference(self.local.function.inputs, other.local.function.inputs)
        every = self._exchange.objects(own)
        return next((f"on process {rank}, {text}" for rank, text in enumerate(every) if text), "")

    def inputs_digest(self) -> str:
        """As :meth:`ntkscope.engines.base.Engine.inputs_digest`, of all processes' batches in order."""
        return hashlib.blake2b("".join(self._digests).encode(), digest_size=16).hexdigest()

    def on(self, inputs: Any) -> SpreadEngine:
        """The same model on other inputs: this process's share of them."""
        return self._twin(lambda: self.local.on(inputs))

    def at(self, model: nn.Module) -> SpreadEngine:
        """The same state with other parameters.

        Raises:
            ValueError: If the state has another shape.
        """
        return self._twin(lambda: self.local.at(model))

    def _twin(self, make: Callable[[], TorchEngine]) -> SpreadEngine:
        twin = SpreadEngine.__new__(SpreadEngine)
        twin._exchange = self._exchange.again()
        twin._take(twin._exchange.run(make))
        return twin


def _digest_of(parameters: Mapping[str, Tensor]) -> str:
    """A hash of parameters' names and values."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in parameters.items():
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
        found.update(name.encode())
        found.update(bits.numpy().data)
    return found.hexdigest()
