"""The watched state of a model as a pure function of its parameters and inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.backward import first_backward, without_hooks
from ntkscope.engines.torch.capture import as_arguments, check_state, checked_inputs
from ntkscope.engines.torch.checkpoints import as_in_training
from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.constants import Constants, have_one_form, layout_of, outlines
from ntkscope.engines.torch.errors import first_line
from ntkscope.engines.torch.history import check_leaves
from ntkscope.engines.torch.memory import is_out_of_memory
from ntkscope.engines.torch.meter import ForwardMeter, ForwardSize
from ntkscope.engines.torch.modes import differentiable_operations, has_recurrence, undisturbed
from ntkscope.engines.torch.own import OwnModule
from ntkscope.engines.torch.proofs import Claim, keep, recall
from ntkscope.engines.torch.witness import Witness, check_finite, check_probe, differing
from ntkscope.errors import said

__all__ = ["Parameters", "StateFunction"]

Parameters: TypeAlias = dict[str, Tensor]


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

    _witness: Witness | None

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
            # A parameter of no entries has no gradient to look at.
            self._trainable = {name: p for name, p in named.items() if p.requires_grad and p.numel()}
            if any(p.is_inference() for p in named.values()):
                raise ValueError(
                    "the model was made in torch.inference_mode(), so it has no gradients; "
                    "make it (or load it) outside of that context"
                )
            self._complex = {name for name, p in self._trainable.items() if p.is_complex()}
            self._buffers = {name: buffer.detach().clone() for name, buffer in buffers.items()}
            self._frozen = {n: p.detach().clone() for n, p in named.items() if n not in self._trainable}
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
            # What is differentiated itself, or measured at other parameters, is proven each time.
            claim = None
            if detach and not self._roots:
                given = (self.inputs, self._frozen, self._buffers)
                claim = Claim.of(self._own.outline, layer, outputs, self.parameters, given)
            self._prove(proven, claim)

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

    def is_complex(self, name: str) -> bool:
        """Whether a parameter is complex, so that it is two real ones here."""
        return name in self._complex

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
        # The call puts the module's attributes back by itself.
        with undisturbed(), differentiable_operations(recurrent=self._recurrent):
            state: Tensor = self._own.call({**own, **buffers}, args, kwargs)
            return state

    def constants(self) -> Constants:
        """What stays the same while the parameters' values change."""
        return Constants(
            outlines(self.parameters),
            tuple(self.output_shape),
            self._frozen | self._buffers | self._scaling(),
            layout_of(self.inputs),
        )

    def _scaling(self) -> Parameters:
        """What a recorded graph holds of scaled parameters as constants."""
        roots = {f"root of {name}": value for name, value in self._roots.items()}
        return roots | {f"centre of {name}": value for name, value in self._centre.items()}

    @contextmanager
    def operations(self) -> Iterator[None]:
        """The context in which the forward pass and its derivatives run, one at a time.

        The module is as it was, since backward passes may run parts of it again (checkpoints).
        """
        with undisturbed(), differentiable_operations(recurrent=self._recurrent), self._own.as_it_was():
            yield

    def as_it_was(self) -> AbstractContextManager[None]:
        """A context in which the user's module has its attributes of this moment: modes, hooks and flags."""
        return self._own.as_it_was()

    def witness(self) -> Witness:
        """One backward pass of a random z through the user's own module, over the whole batch."""
        if self._witness is None:
            z = check_probe(self.state)
            self._witness = Witness(z, self.gradients_of(z))
            check_finite(self._witness.gradients)
        return self._witness

    def gradients_of(self, z: Tensor) -> dict[str, Tensor | None]:
        """Jᵀz by parameter, from a forward pass of its own."""
        leaves = {name: value.detach().clone().requires_grad_() for name, value in self.parameters.items()}
        return self._gradients(self(leaves), leaves, z)

    def on(self, inputs: Any, state: Tensor | None = None) -> StateFunction:
        """The same model at the same moment on another batch, whose witness is found when it is asked for.

        Args:
            inputs: Another batch.
            state: Its state, where that is known.

        Raises:
            TypeError: As for a new one, and ValueError.
        """
        twin = copy.copy(self)
        twin.inputs = checked_inputs(inputs, self._floating)
        meter = None if have_one_form(twin.inputs, self.inputs) else ForwardMeter()
        if state is None or meter is not None:
            with meter or nullcontext():
                found = twin(self.parameters).detach()
            check_state(found, self._chosen)
            state = found if state is None else state
        if meter is not None:
            twin.forward_size = meter.size()
        twin.state, twin.output_shape = state, tuple(state.shape)
        twin._witness = None
        return twin

    def prove_again(self) -> None:
        """Compares another batch's state and gradients with those of a second evaluation.

        Raises:
            ValueError: If they differ.
        """
        self._compare_with_exchanged(self.witness().probe)

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

    def _prove(self, proven: StateFunction | None, claim: Claim | None) -> None:
        """Evaluates with gradients, as training would, and refuses what cannot be measured."""
        devices = {tensor.device for tensor in self.parameters.values() if tensor.is_cuda}
        trainable = self._trainable.values()
        known = proven is not None and proven.module is self.module and self._own.is_like(proven._own)
        with torch.random.fork_rng(devices=devices):
            # What was counted of the same module in the same form holds; counting takes a third of a pass.
            counted = None
            if known and proven is not None and have_one_form(proven.inputs, self.inputs):
                counted = proven.forward_size
            elif claim is not None and not known:
                counted = recall(self.module, claim)
                known = counted is not None
            meter = ForwardMeter()
            with without_hooks(trainable), as_in_training(), nullcontext() if counted else meter:
                state = self._run(None, self.inputs)
                check_state(state, self._chosen)
            self.state, self.output_shape = state.detach(), tuple(state.shape)
            z = check_probe(state)
            with first_backward(trainable):
                gradients = self._gradients(state, self._trainable, z)
            check_leaves(state, trainable, self.inputs)
            del state
            self.forward_size: ForwardSize = counted or meter.size()
            real = {name: self._real(name, g) for name, g in gradients.items()}
            for name, root in self._roots.items():
                gradient = real[name]
                real[name] = None if gradient is None else gradient * root
            self._witness = Witness(z, real)
            check_finite(real)
            if not known:
                self._compare_with_exchanged(z)
                if claim is not None:
                    keep(self.module, claim, self.forward_size)

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
                f"(dropout?); {said('call model.eval() first', 'leave --train-mode out')}, or make its "
                "randomness an input"
            )
        missed = differing(self.witness().gradients, gradients, self.dtype)
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
