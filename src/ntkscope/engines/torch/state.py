"""The watched state of a model as a pure function of its parameters and inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.capture import as_arguments, check_state, checked_inputs
from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.errors import first_line
from ntkscope.engines.torch.memory import is_out_of_memory
from ntkscope.engines.torch.meter import ForwardMeter
from ntkscope.engines.torch.modes import CHECK_SEED, differentiable_operations, has_recurrence, undisturbed
from ntkscope.engines.torch.own import OwnModule

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

    The user's own module runs, with the parameters' and buffers' values of the moment at which
    this was made, so that training it later changes nothing here, and nothing here changes it.
    Gradients flow to whatever parameters and inputs a call is given. A complex parameter is two
    real ones, its parts along a last axis.

    When it is made, one backward pass through the module as it stands is compared with one that
    has its parameters exchanged, parameter by parameter: where they differ, a parameter is reached
    by a path that an exchange does not see, and no kernel can be had.

    Args:
        model: Any module.
        inputs: A tensor, a tuple or list (positional arguments) or a mapping (keyword arguments).
        outputs: Picks the state from what the model (or ``layer``) returns.
        layer: Dotted name of a submodule whose output is the state.
        detach: Whether ``parameters`` and ``inputs`` are cut off from the graph that they came from;
            else ``parameters`` are the model's own, and its training changes them.
        proven: The same state of the same module with other values of its parameters, for which the
            comparison was made.
        roots: √D of every parameter by name, to measure J D Jᵀ: the parameters are φ with
            θ = θ₀ + √D (φ - θ₀), so that all that is here of J is of J√D.

    Attributes:
        parameters: The trainable parameters by name; a tied one once.
        inputs: The batch.
        state: Its state, without gradient.
        output_shape: Shape of the state.
        forward_size: What one forward pass computes and writes.

    Raises:
        TypeError: If the model is not a module, or its state is not one real floating tensor.
        ValueError: If the state is empty, not finite, random or coupled to nothing trainable, or
            depends on parameters by a path of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        outputs: Callable[[Any], Tensor] | None = None,
        layer: str | None = None,
        *,
        detach: bool = True,
        proven: StateFunction | None = None,
        roots: Parameters | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, found {type(model).__name__}; "
                "wrap a function in a module whose parameters it uses"
            )
        with undisturbed():
            self._own = OwnModule(model, layer, outputs)
            self._chosen = layer is not None or outputs is not None
            self._recurrent = has_recurrence(self._own.model)
            with self._own.as_it_was():
                named = dict(self._own.model.named_parameters())
                buffers = dict(self._own.model.named_buffers())
            self._trainable = {name: p for name, p in named.items() if p.requires_grad}
            if any(p.is_inference() for p in named.values()):
                raise ValueError(
                    "the model was made in torch.inference_mode(), so it has no gradients; "
                    "make it (or load it) outside of that context"
                )
            self._complex = {name for name, p in self._trainable.items() if p.is_complex()}
            self._buffers = {name: buffer.detach().clone() for name, buffer in buffers.items()}
            self._frozen = {n: p.detach().clone() for n, p in named.items() if not p.requires_grad}
            self.parameters: Parameters = {
                name: self._real(name, p.detach().clone() if detach else p)
                for name, p in self._trainable.items()
            }
            if not self.parameters:
                raise ValueError(
                    "the model has no trainable parameter, so its NTK is empty; "
                    "set requires_grad=True on the parameters that you want in θ"
                )
            self._floating = next((p.dtype for p in named.values() if p.is_floating_point()), torch.float32)
            self.inputs = checked_inputs(inputs, self._floating, detach)
            self._roots = roots or {}
            self._centre = {name: self.parameters[name].detach() for name in self._roots}
            self._prove(proven)

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.state.device

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype, in which products run."""
        return self.state.dtype

    @property
    def module(self) -> nn.Module:
        """The user's own module."""
        return self._own.model

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Any = None) -> Tensor:
        """The state at these parameters and inputs; of ``output_shape`` for the batch.

        Args:
            parameters: By name, all of the trainable ones.
            inputs: In the form of the batch; the batch itself if ``None``.
        """
        scaled = {name: self._scaled(name, value) for name, value in parameters.items()}
        values = {
            name: torch.view_as_complex(value) if name in self._complex else value
            for name, value in scaled.items()
        }
        return self._run(values, self.inputs if inputs is None else inputs)

    def _scaled(self, name: str, value: Tensor) -> Tensor:
        """θ₀ + √D (φ - θ₀): the value itself at θ₀, to the last bit."""
        if name not in self._roots:
            return value
        return self._centre[name] + self._roots[name] * (value - self._centre[name])

    def _run(self, parameters: Mapping[str, Tensor] | None, inputs: Any) -> Tensor:
        """The state with these parameters in place of the module's own."""
        # Clones, since models write into their inputs (in-place activations) and buffers (batch norm).
        args, kwargs = as_arguments(pytree.tree_map_only(Tensor, torch.clone, inputs))
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        own = {} if parameters is None else {**self._frozen, **parameters}
        with self.operations():
            state: Tensor = self._own.call({**own, **buffers}, args, kwargs)
            return state

    def same_constants(self, other: StateFunction) -> bool:
        """Whether the other is the same but for the values of its parameters."""
        # A recorded graph would hold θ₀ as a constant.
        return (
            not self._roots
            and not other._roots
            and _outlines(self.parameters) == _outlines(other.parameters)
            and self.output_shape == other.output_shape
            and _equal(self._frozen, other._frozen)
            and _equal(self._buffers, other._buffers)
        )

    @contextmanager
    def operations(self) -> Iterator[None]:
        """The context in which the forward pass and its derivatives run, one at a time.

        The module is as it was, since backward passes may run parts of it again (checkpoints).
        """
        with undisturbed(), differentiable_operations(recurrent=self._recurrent), self._own.as_it_was():
            yield

    def witness(self) -> Witness:
        """One backward pass of a random z through the user's own module, over the whole batch."""
        return self._witness

    def gradients_of(self, z: Tensor) -> dict[str, Tensor | None]:
        """Jᵀz by parameter, from a forward pass of its own."""
        leaves = {name: value.detach().clone().requires_grad_() for name, value in self.parameters.items()}
        return self._gradients(self(leaves), leaves, z)

    def on(self, inputs: Any) -> StateFunction:
        """The same parameters on other inputs.

        Raises:
            TypeError: If the state is not one real floating tensor.
            ValueError: If it is empty, not finite or random.
        """
        twin = copy.copy(self)
        leaves = {name: value.detach().clone().requires_grad_() for name, value in self.parameters.items()}
        with undisturbed():
            twin.inputs = checked_inputs(inputs, self._floating, True)
            with ForwardMeter() as meter:
                state = twin(leaves)
            check_state(state, self._chosen)
            twin.state, twin.output_shape = state.detach(), tuple(state.shape)
            z = _random_like(state)
            twin._witness = Witness(z, twin._gradients(state, leaves, z))
            _check_finite(twin._witness.gradients)
            del state
            twin.forward_size = meter.size()
            twin._compare_with_exchanged(z)
        return twin

    def in_double(self) -> StateFunction:
        """The same state with everything in float64; what the module holds besides may not allow it."""

        def wide(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.is_complex():
                return value.to(torch.complex128)
            return value.double() if value.is_floating_point() else value

        twin = copy.copy(self)
        twin.parameters = {name: wide(value) for name, value in self.parameters.items()}
        twin._roots = {name: wide(value) for name, value in self._roots.items()}
        twin._centre = {name: wide(value) for name, value in self._centre.items()}
        twin._frozen = {name: wide(value) for name, value in self._frozen.items()}
        twin._buffers = {name: wide(value) for name, value in self._buffers.items()}
        twin.inputs = pytree.tree_map(wide, self.inputs)
        return twin

    # The proof.

    def _prove(self, proven: StateFunction | None) -> None:
        """Evaluates with gradients, as training would, and refuses what cannot be measured."""
        devices = {tensor.device for tensor in self.parameters.values() if tensor.is_cuda}
        known = proven is not None and proven.module is self.module and self._own.is_like(proven._own)
        with torch.random.fork_rng(devices=devices):
            with _without_hooks(self._trainable.values()), ForwardMeter() as meter:
                state = self._run(None, self.inputs)
                check_state(state, self._chosen)
            self.state, self.output_shape = state.detach(), tuple(state.shape)
            z = _random_like(state)
            with _without_hooks(self._trainable.values()):
                gradients = self._gradients(state, self._trainable, z)
            _check_leaves(state, self._trainable.values(), self.inputs)
            del state
            self.forward_size = meter.size()
            own = {name: self._real(name, g) for name, g in gradients.items()}
            for name, root in self._roots.items():
                gradient = own[name]
                own[name] = None if gradient is None else gradient * root
            self._witness = Witness(z, own)
            _check_finite(self._witness.gradients)
            if not known:
                self._compare_with_exchanged(z)

    def _gradients(self, state: Tensor, leaves: Mapping[str, Tensor], z: Tensor) -> dict[str, Tensor | None]:
        """Jᵀz by parameter."""
        if not state.requires_grad:
            return dict.fromkeys(leaves)
        with self.operations():
            # What the user's module keeps of an earlier pass stays usable.
            found = torch.autograd.grad(state, list(leaves.values()), z, allow_unused=True, retain_graph=True)
        dense = [g.to_dense() if g is not None and g.layout != torch.strided else g for g in found]
        return dict(zip(leaves, dense, strict=True))

    def _compare_with_exchanged(self, z: Tensor) -> None:
        """The state and its gradients once more, with other tensors in the place of the parameters."""
        leaves = {name: value.detach().clone().requires_grad_() for name, value in self.parameters.items()}
        try:
            state = self(leaves)
            found = state.detach()
            gradients = self._gradients(state, leaves, z)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"the model does not run with its parameters exchanged ({first_line(error)}): its forward or "
                "backward pass reaches them by a path of its own, as adjoint solvers do; differentiate "
                "through the plain operations instead (such as odeint in place of odeint_adjoint)"
            ) from error
        tolerance = 64 * torch.finfo(self.dtype).eps * float(self.state.abs().max())
        if found.shape != self.state.shape or not float((found - self.state).abs().max()) <= tolerance:
            raise ValueError(
                "two evaluations of the model on the same inputs differ, so it is random "
                "(dropout?); call model.eval() first, or make its randomness an input"
            )
        missed = _differing(self._witness.gradients, gradients, self.dtype)
        if missed:
            raise ValueError(
                f"the parameter {missed!r} is reached by a path besides its module's (a list or closure "
                "that holds it, a value cached before, a backward pass that calls the model again), so its "
                "gradient cannot be told; use it as an attribute of its module alone, and clear what is "
                "cached"
            )

    def _real(self, name: str, value: Any) -> Any:
        """A complex parameter's value as two real ones."""
        return (
            torch.view_as_real(value.resolve_conj()) if value is not None and name in self._complex else value
        )


def _random_like(state: Tensor) -> Tensor:
    """The z of a proof."""
    generator = torch.Generator().manual_seed(CHECK_SEED)
    return torch.randn(state.shape, generator=generator, dtype=torch.float64).to(state.device, state.dtype)


def _differing(
    expected: Mapping[str, Tensor | None], found: Mapping[str, Tensor | None], dtype: torch.dtype
) -> str:
    """The first parameter whose gradients differ by more than rounding; empty if there is none."""
    epsilon = torch.finfo(dtype).eps
    sizes = [float(g.double().norm()) for g in (*expected.values(), *found.values()) if g is not None]
    floor = 1e3 * epsilon * max(sizes, default=0.0)
    for name, own in expected.items():
        other = found[name]
        if own is None and other is None:
            continue
        one, two = (torch.zeros(()) if g is None else g.double() for g in (own, other))
        difference = float((one.cpu() - two.cpu()).norm())
        if not difference <= epsilon**0.5 * float(one.norm()) + floor:
            return name
    return ""


def _check_finite(gradients: Mapping[str, Tensor | None]) -> None:
    """Refuses gradients of which no kernel can be made."""
    for name, gradient in gradients.items():
        if gradient is not None and not bool(gradient.isfinite().all()):
            raise ValueError(
                f"the gradient of the parameter {name!r} has entries that are NaN or infinite, though the "
                "state has none; look for a root, logarithm or norm at 0, or use a model of higher precision"
            )


def _check_leaves(state: Tensor, parameters: Iterable[Tensor], inputs: Any) -> None:
    """Refuses a state that depends on parameters which are none of the model's."""
    known = {id(p) for p in parameters} | {id(x) for x in pytree.tree_leaves(inputs)}
    seen: set[Any] = set()
    stack = [state.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        # Other leaves are made inside of forward.
        if isinstance(variable, nn.Parameter) and id(variable) not in known:
            raise ValueError(
                f"the state depends on a trainable parameter of shape {tuple(variable.shape)} that is "
                "none of the model's; register it (nn.ParameterList, nn.ModuleList) or detach it "
                "(requires_grad_(False))"
            )
        stack.extend(function for function, _ in node.next_functions)


@contextmanager
def _without_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """The user's hooks on gradients are for training: they neither run nor change what is measured."""
    hooks = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
    for parameter, _ in hooks:
        parameter._backward_hooks = None
    try:
        yield
    finally:
        for parameter, own in hooks:
            parameter._backward_hooks = own


def _outlines(tensors: Mapping[str, Tensor]) -> list[Any]:
    return [(name, value.shape, value.dtype, value.device) for name, value in tensors.items()]


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return _outlines(first) == _outlines(second) and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )
