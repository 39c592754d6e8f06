"""The engine of models that are not traced: their own forward and backward pass, with hooks on the layers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ntkscope.data import is_stream
from ntkscope.engines.base import LinearMap, Machine, Sizes
from ntkscope.engines.torch.batches import difference, digest
from ntkscope.engines.torch.hooks.axes import checked_axes
from ntkscope.engines.torch.hooks.check import check_gradients
from ntkscope.engines.torch.hooks.gradients import Hooked
from ntkscope.engines.torch.hooks.module import OwnPasses
from ntkscope.engines.torch.hooks.places import find_places
from ntkscope.engines.torch.hooks.samples import NO_PRODUCTS, USE_SAMPLES, HookedSamples
from ntkscope.engines.torch.hooks.sharded import data_parallel_group
from ntkscope.engines.torch.memory import DEFAULT_BUDGET
from ntkscope.engines.torch.processes.exchange import Exchange
from ntkscope.engines.torch.processes.session import session_of
from ntkscope.engines.torch.samples.axes import BatchDim
from ntkscope.operators.ledger import Ledger

__all__ = ["HooksEngine"]

# All processes must choose alike, whatever their clocks say.
_MACHINE = Machine(flops=5e10, elements=1e9, call=5e-6)


class HooksEngine:
    """One torch module on one batch, as :class:`ntkscope.engines.base.Engine`.

    With ``fully_shard`` every process holds samples of its own, numbered by rank: n, the probes and the
    numbers that come out are those of all of them together.

    Args:
        model: The module, sharded or not.
        inputs: What it is called with: this process's samples.
        outputs: Picks the state from what the model returns.
        layer: Name of a submodule whose output is the state.
        batch_dim: The axis of the inputs that holds the samples.
        memory_budget: Bytes that one pass may take.
        chunk_size: Copies of the batch in a pass.
        exchange: Between processes with samples of their own and copies of a plain model.

    Raises:
        TypeError: As :class:`ntkscope.NTK`.
        ValueError: As :class:`ntkscope.NTK`, and if samples are coupled, or a parameter is used where hooks
            do not see it.
    """

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
        exchange: Exchange | None = None,
    ) -> None:
        if is_stream(inputs):
            raise TypeError("hooks on layers measure one batch, found data that streams; pass a batch of it")
        self.ledger = Ledger()
        self.budget = memory_budget
        self._options: dict[str, Any] = {
            "outputs": outputs,
            "layer": layer,
            "batch_dim": batch_dim,
            "memory_budget": memory_budget,
            "chunk_size": chunk_size,
            "exchange": exchange,
        }
        passes = OwnPasses(model, inputs, outputs, layer)
        of_shards = data_parallel_group(passes.model)
        exchange = Exchange(of_shards) if exchange is None or of_shards is not None else exchange.again()
        problem = None
        try:
            axes, state, size = checked_axes(passes, batch_dim)
        except (TypeError, ValueError) as error:
            problem = error
        exchange.agree(problem)
        exchange.share(axes.batch)
        hooked = Hooked(passes, axes, exchange, state)
        forms = exchange.objects((axes.state_axis, axes.state_shape, state.dtype))
        if any(form != forms[0] for form in forms):
            raise ValueError(
                f"the processes' states have shapes {[form[1] for form in forms]} a sample; bring all "
                "samples to one shape (padding)"
            )
        self._digests = exchange.objects(digest(passes.inputs))
        # In training a pass keeps its activations, and their gradients come beside them.
        row = 3 * state.element_size() * size.elements / axes.batch
        largest = max(exchange.objects(row * axes.batch))
        # A tile of all samples, of which there are a few at a time.
        tile = int((memory_budget / 32) ** 0.5) // exchange.batch
        at_once = chunk_size or max(1, min(tile, int(memory_budget // max(largest, 1))))
        seen = find_places(hooked, at_once)
        check_gradients(hooked, seen)
        self._samples = HookedSamples(hooked, at_once, self.ledger)
        self._size = size
        self._taps = sum(math.prod(delta) for _, _, delta in seen.order)

    # What it is.

    @property
    def hooked(self) -> Hooked:
        """The model and its layers."""
        return self._samples.hooked

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p), of all processes."""
        return (
            self._samples.batch * self._samples.outputs,
            sum(parameter.numel() for parameter in self.hooked.passes.parameters.values()),
        )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the state of all processes' samples."""
        shape = list(self.hooked.axes.state_shape)
        if self.hooked.state.dim():
            shape[self.hooked.axes.state_axis] *= self._samples.batch
        return tuple(shape)

    @property
    def state(self) -> Tensor:
        """The state of this process's samples."""
        return self.hooked.state

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype."""
        return self.hooked.dtype

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.hooked.device

    def session(self) -> AbstractContextManager[None]:
        """One thread at a time, outside of inference mode; rank 0 decides when all stop."""
        return session_of(self.hooked.exchange)

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """As :attr:`ntkscope.engines.base.Engine.parameters`; of sharded ones the whole."""
        return {name: tuple(value.shape) for name, value in self.hooked.passes.parameters.items()}

    # What an engine offers.

    def map(self) -> LinearMap:
        """J, of which there are no products."""
        return _no_map(self, self.shape)

    def kernel_map(self) -> LinearMap:
        """K, of which there are no products."""
        return _no_map(self, (self.shape[0], self.shape[0]))

    def check_forward(self) -> None:
        """There is no forward mode.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(USE_SAMPLES)

    def samples(self) -> HookedSamples:
        """The Jacobian of every sample on its own."""
        return self._samples

    def sizes(self, kernels: int = 1) -> Sizes:
        """Counts to plan with, the same on every process."""
        n, p = self.shape
        counts, size = self.hooked.exchange.counts, self._size
        times = self._samples.batch / self.hooked.batch
        return Sizes(
            n=n,
            p=p,
            batch=self._samples.batch,
            outputs=self._samples.outputs,
            operations=size.operations,
            elements=round(size.elements * times),
            flops=round(size.flops * times),
            taps=self._taps,
            gradient_flops=float(p),
            used=p,
            kernels=kernels,
            budget=self.budget,
            itemsize=self.state.element_size(),
            held=max(counts),
            no_products=NO_PRODUCTS,
        )

    def machine(self) -> Machine:
        """Fixed speeds."""
        return _MACHINE

    def dense(self) -> Tensor:
        """K itself, shape (n, n), in tiles."""
        return self._samples.dense()

    def matrix(self, other: Any) -> Tensor:
        """None is compared with.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a kernel that hooks on layers measure is compared with another such kernel, found a matrix; "
            "use ntkscope.estimators.alignment of to_dense()"
        )

    def other_inputs(self, other: Any) -> str:
        """As :meth:`ntkscope.engines.base.Engine.other_inputs`, the same on every process."""
        if not isinstance(other, HooksEngine):
            return "one is measured by hooks on layers and one is not"
        if self._digests == other._digests:
            return ""
        return difference(self.hooked.passes.inputs, other.hooked.passes.inputs) or "those of another process"

    def inputs_digest(self) -> str:
        """As :meth:`ntkscope.engines.base.Engine.inputs_digest`, of all processes' batches in order."""
        if len(self._digests) == 1:
            return str(self._digests[0])
        return hashlib.blake2b("".join(self._digests).encode(), digest_size=16).hexdigest()

    def as_state(self, values: NDArray[np.float64]) -> Tensor:
        """None: what is asked of vectors goes by products.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(USE_SAMPLES)

    def state_gradient(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """As :meth:`as_state`."""
        raise NotImplementedError(USE_SAMPLES)

    def on(self, inputs: Any) -> HooksEngine:
        """As :meth:`as_state`."""
        raise NotImplementedError(USE_SAMPLES)

    def at(self, model: nn.Module) -> HooksEngine:
        """The same state with other parameters.

        Raises:
            ValueError: If the state has another shape.
        """
        twin = HooksEngine(model, self.hooked.passes.inputs, **self._options)
        if twin.output_shape != self.output_shape:
            raise ValueError(
                f"the model's state has shape {twin.output_shape} now, expected {self.output_shape}; "
                "make a new NTK of it"
            )
        return twin


class _NoProducts:
    """A map of which only the shape is known."""

    def __init__(self, ledger: Ledger, shape: tuple[int, int], epsilon: float) -> None:
        self.ledgers, self.shape, self.epsilon = (ledger,), shape, epsilon

    @property
    def T(self) -> _NoProducts:
        return _NoProducts(self.ledgers[0], (self.shape[1], self.shape[0]), self.epsilon)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(USE_SAMPLES)

    def __matmul__(self, v: Any) -> Any:
        raise NotImplementedError(USE_SAMPLES)


def _no_map(engine: HooksEngine, shape: tuple[int, int]) -> Any:
    return _NoProducts(engine.ledger, shape, float(torch.finfo(engine.dtype).eps))
