"""The watched state of a model as a pure function of its parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ntkscope.engines.torch.capture import LayerTap, as_arguments, check_state, checked_inputs, snapshot
from ntkscope.engines.torch.meter import ForwardMeter
from ntkscope.engines.torch.modes import CHECK_SEED, differentiable_operations, has_recurrence

__all__ = ["Parameters", "StateFunction", "Witness"]

Parameters: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Witness:
    """One backward pass through the model, which every other way to its gradients must agree with.

    Attributes:
        probe: z, of the state's shape.
        gradients: Jᵀz by parameter; ``None`` where no path leads to it.
    """

    probe: Tensor
    gradients: dict[str, Tensor | None]


class StateFunction:
    """A model and what to watch, frozen: (parameters, inputs) ↦ state.

    The model is copied with its parameters' values, so that training it later changes
    nothing here, and nothing here changes it. Gradients flow to whatever parameters and
    inputs a call is given.

    Args:
        model: Any module.
        inputs: A tensor, a tuple or list (positional arguments) or a mapping (keyword arguments).
        outputs: Picks the state from what the model (or ``layer``) returns.
        layer: Dotted name of a submodule whose output is the state.
        detach: Whether ``parameters`` and ``inputs`` are cut off from the graph that they came from;
            else ``parameters`` are the model's own, and its training changes them.

    Attributes:
        parameters: The trainable parameters by name; a tied one once.
        inputs: The batch.
        state: Its state, without gradient.
        output_shape: Shape of the state.
        forward_size: What one forward pass computes and writes.

    Raises:
        TypeError: If the model is not a module, or its state is not one real floating tensor.
        ValueError: If the state is empty, not finite, random or coupled to nothing trainable.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        outputs: Callable[[Any], Tensor] | None = None,
        layer: str | None = None,
        *,
        detach: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, found {type(model).__name__}; "
                "wrap a function in a module whose parameters it uses"
            )
        self._model = snapshot(model)
        self._outputs = outputs
        self._tap = LayerTap(self._model, layer) if layer is not None else None
        self._recurrent = has_recurrence(self._model)
        self._buffers = dict(self._model.named_buffers())
        named = dict(self._model.named_parameters())
        trainable = {name: p for name, p in named.items() if p.requires_grad}
        own = dict(model.named_parameters())
        self.parameters: Parameters = {n: p.detach() if detach else own[n] for n, p in trainable.items()}
        self._frozen: Parameters = {n: p.detach() for n, p in named.items() if not p.requires_grad}
        if not self.parameters:
            raise ValueError(
                "the model has no trainable parameter, so its NTK is empty; "
                "set requires_grad=True on the parameters that you want in θ"
            )
        self.inputs = checked_inputs(inputs, detach)
        self._witness: Witness | None = None
        self.state = self._first_state()
        self.output_shape = tuple(self.state.shape)

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.state.device

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype, in which products run."""
        return self.state.dtype

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Any = None) -> Tensor:
        """The state at these parameters and inputs; of ``output_shape`` for the batch.

        Args:
            parameters: By name, all of the trainable ones.
            inputs: In the form of the batch; the batch itself if ``None``.
        """
        # Clones, since models write into their inputs (in-place activations) and buffers (batch norm).
        copies = pytree.tree_map_only(Tensor, torch.clone, self.inputs if inputs is None else inputs)
        args, kwargs = as_arguments(copies)
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        tensors = {**self._frozen, **buffers, **parameters}
        with self.operations():
            if self._tap is None:
                result = functional_call(self._model, tensors, args, kwargs)
            else:
                result = self._tap.watch(lambda: functional_call(self._model, tensors, args, kwargs))
            return result if self._outputs is None else self._outputs(result)

    def same_constants(self, other: StateFunction) -> bool:
        """Whether the other is the same but for the values of its parameters."""
        return (
            _outlines(self.parameters) == _outlines(other.parameters)
            and self.output_shape == other.output_shape
            and _equal(self._frozen, other._frozen)
            and _equal(self._buffers, other._buffers)
        )

    @contextmanager
    def operations(self) -> Iterator[None]:
        """The context in which the forward pass and its derivatives run."""
        with differentiable_operations(recurrent=self._recurrent):
            yield

    def witness(self) -> Witness:
        """One backward pass of a random z through the whole batch; run once."""
        if self._witness is None:
            leaves = {
                name: value.detach().clone().requires_grad_() for name, value in self.parameters.items()
            }
            generator = torch.Generator().manual_seed(CHECK_SEED)
            with torch.enable_grad(), self.operations():
                state = self(leaves)
                z = torch.randn(state.shape, generator=generator, dtype=torch.float64)
                z = z.to(state.device, state.dtype)
                found: Sequence[Tensor | None] = [None] * len(leaves)
                if state.requires_grad:
                    found = torch.autograd.grad(state, list(leaves.values()), z, allow_unused=True)
            self._witness = Witness(z, dict(zip(leaves, found, strict=True)))
        return self._witness

    @torch.no_grad()
    def _first_state(self) -> Tensor:
        """Evaluates twice, and refuses what cannot be measured."""
        devices = {tensor.device for tensor in self.parameters.values() if tensor.is_cuda}
        with torch.random.fork_rng(devices=devices):
            state = self(self.parameters)
            check_state(state, self._tap is not None or self._outputs is not None)
            with ForwardMeter() as meter:
                again = self(self.parameters)
        self.forward_size = meter.size()
        tolerance = 64 * torch.finfo(state.dtype).eps * float(state.abs().max())
        if float((state - again).abs().max()) > tolerance:
            raise ValueError(
                "two evaluations of the model on the same inputs differ, so it is random "
                "(dropout?); call model.eval() first, or make its randomness an input"
            )
        return state.detach()


def _outlines(tensors: Mapping[str, Tensor]) -> list[Any]:
    return [(name, value.shape, value.dtype, value.device) for name, value in tensors.items()]


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return _outlines(first) == _outlines(second) and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )
