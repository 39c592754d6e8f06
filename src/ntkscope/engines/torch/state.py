"""The watched state of a model as a pure function of its parameters."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ntkscope.engines.torch.compat import BATCH_NORMS, pytree
from ntkscope.engines.torch.meter import ForwardMeter
from ntkscope.engines.torch.modes import differentiable_operations, has_recurrence

__all__ = ["Parameters", "StateFunction"]

Parameters: TypeAlias = dict[str, Tensor]


class StateFunction:
    """A model, its inputs and what to watch, frozen: parameters ↦ state.

    The model is copied with its parameters' values, so that training it later changes
    nothing here, and nothing here changes it.

    Args:
        model: Any module.
        inputs: A tensor, a tuple or list (positional arguments) or a mapping (keyword arguments).
        outputs: Picks the state from what the model (or ``layer``) returns.
        layer: Dotted name of a submodule whose output is the state.

    Attributes:
        parameters: The trainable parameters by name, detached; a tied one once.
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
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, found {type(model).__name__}; "
                "wrap a function in a module whose parameters it uses"
            )
        self._model = _snapshot(model)
        self._outputs = outputs
        self._tap = _LayerTap(self._model, layer) if layer is not None else None
        self._recurrent = has_recurrence(self._model)
        self._buffers = dict(self._model.named_buffers())
        named = dict(self._model.named_parameters())
        self.parameters: Parameters = {n: p.detach() for n, p in named.items() if p.requires_grad}
        self._frozen: Parameters = {n: p.detach() for n, p in named.items() if not p.requires_grad}
        if not self.parameters:
            raise ValueError(
                "the model has no trainable parameter, so its NTK is empty; "
                "set requires_grad=True on the parameters that you want in θ"
            )
        self.inputs = _checked_inputs(inputs)
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
        """The state at these parameters, and at other inputs if given."""
        # Clones, since models write into their inputs (in-place activations) and buffers (batch norm).
        copies = pytree.tree_map_only(Tensor, torch.clone, self.inputs if inputs is None else inputs)
        args, kwargs = _as_arguments(copies)
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

    def replace_inputs(self, inputs: Any) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """The same function of the parameters at other inputs."""
        return lambda parameters: self(parameters, inputs)

    @torch.no_grad()
    def _first_state(self) -> Tensor:
        """Evaluates twice, and refuses what cannot be measured."""
        devices = {tensor.device for tensor in self.parameters.values() if tensor.is_cuda}
        with torch.random.fork_rng(devices=devices):
            state = self(self.parameters)
            _check_state(state, self._tap is not None or self._outputs is not None)
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


class _LayerTap:
    """Watches the output of one submodule, and stops the forward pass there."""

    def __init__(self, model: nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules or name == "":
            known = ", ".join(itertools.islice((m for m in modules if m), 20))
            raise ValueError(f"the model has no submodule {name!r}; its submodules are: {known}")
        self._name = name
        self._caught: list[Any] = []
        modules[name].register_forward_hook(lambda module, args, output: self._caught.append(output))

    def watch(self, call: Callable[[], Any]) -> Any:
        """What the submodule returned during the call."""
        self._caught.clear()
        call()
        caught, self._caught[:] = list(self._caught), []
        if len(caught) != 1:
            raise ValueError(
                f"the submodule {self._name!r} was called {len(caught)} times in one forward pass, "
                "expected once; return the state from the model and pick it with outputs="
            )
        return caught[0]


def _snapshot(model: nn.Module) -> nn.Module:
    """A copy of the model with its own parameter values, without gradients."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            fresh = parameter.detach().clone()
            memo[id(parameter)] = nn.Parameter(fresh, requires_grad=parameter.requires_grad)
        # Tensors that a hook recomputes (the old weight_norm) refuse to be copied by deepcopy.
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        twin = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise TypeError(
            f"the model cannot be copied for a snapshot of its parameters ({error}); "
            "remove what refuses copy.deepcopy from the module"
        ) from error
    for module in twin.modules():
        # A sparse gradient is the same one, in a form that few operations take.
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = False
        # In training mode batch norm uses the batch alone; its running averages are only written to.
        if isinstance(module, BATCH_NORMS) and module.training:
            module.register_buffer("running_mean", None)
            module.register_buffer("running_var", None)
            module.register_buffer("num_batches_tracked", None)
            module.track_running_stats = False
    return twin


def _as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def _checked_inputs(inputs: Any) -> Any:
    """The inputs, detached and copied."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(
            f"inputs hold no tensor, found {type(inputs).__name__}; pass a tensor, a tuple of tensors "
            "(positional arguments) or a dict of tensors (keyword arguments)"
        )
    if any(tensor.numel() == 0 for tensor in tensors):
        raise ValueError(
            f"an input is empty, shapes {[tuple(t.shape) for t in tensors]}; "
            "pass a batch with at least one sample"
        )
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), inputs)


def _check_state(state: Any, chosen: bool) -> None:
    source = "outputs= or layer= picked" if chosen else "the model returned"
    if not isinstance(state, Tensor):
        raise TypeError(
            f"{source} {_describe(state)}, expected one tensor; "
            "choose the state, such as outputs=lambda y: y[0]"
        )
    if not state.is_floating_point():
        raise TypeError(
            f"the state has dtype {state.dtype}, expected a real floating one; "
            "watch the logits or hidden units instead of indices, masks or spectra"
        )
    if state.numel() == 0:
        raise ValueError(f"the state is empty, shape {tuple(state.shape)}; pass at least one sample")
    if not bool(state.isfinite().all()):
        bad = int((~state.isfinite()).sum())
        raise ValueError(
            f"the state has {bad} of {state.numel()} entries that are NaN or infinite; "
            "check the inputs and the parameters (a diverged training run?)"
        )


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(type(item).__name__ for item in value)})"
    return f"a {type(value).__name__}"
