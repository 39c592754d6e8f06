"""Take hold of what the user hands over: the model, its inputs and its state, copied and checked."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ntkscope.errors import StateError

__all__ = ["LayerTap", "as_arguments", "check_state", "checked_inputs", "snapshot"]


def snapshot(model: nn.Module) -> nn.Module:
    """A copy of the model with parameter values of its own, in which no forward pass leaves a trace.

    Raises:
        TypeError: If the model cannot be copied.
    """
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
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
            module.register_buffer("running_mean", None)
            module.register_buffer("running_var", None)
            module.register_buffer("num_batches_tracked", None)
            module.track_running_stats = False
    return twin


class LayerTap:
    """Watches the output of one submodule.

    Args:
        model: The model, which is given a hook for good: a copy of the user's.
        name: Dotted name of the submodule.

    Raises:
        ValueError: If there is no such submodule.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules or name == "":
            known = ", ".join(itertools.islice((m for m in modules if m), 20))
            raise ValueError(f"the model has no submodule {name!r}; its submodules are: {known}")
        self._name = name
        self._caught: list[Any] = []
        modules[name].register_forward_hook(lambda module, args, output: self._caught.append(output))

    def watch(self, call: Callable[[], Any]) -> Any:
        """What the submodule returned during the call.

        Raises:
            ValueError: If it was not called exactly once.
        """
        self._caught.clear()
        call()
        caught, self._caught[:] = list(self._caught), []
        if len(caught) != 1:
            raise ValueError(
                f"the submodule {self._name!r} was called {len(caught)} times in one forward pass, "
                "expected once; return the state from the model and pick it with outputs="
            )
        return caught[0]


def checked_inputs(inputs: Any, detach: bool = True) -> Any:
    """A copy of the inputs, detached or not.

    Raises:
        TypeError: If they hold no tensor.
        ValueError: If one is empty.
    """
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
    return pytree.tree_map_only(
        Tensor, lambda tensor: (tensor.detach() if detach else tensor).clone(), inputs
    )


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs as positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def check_state(state: Any, chosen: bool) -> None:
    """Refuses what cannot be measured.

    Args:
        state: What was found.
        chosen: Whether the user picked it, by ``outputs=`` or ``layer=``.

    Raises:
        TypeError: If it is not one real floating tensor.
        ValueError: If it is empty or not finite.
    """
    source = "outputs= or layer= picked" if chosen else "the model returned"
    if not isinstance(state, Tensor):
        raise StateError(
            f"{source} {_describe(state)}, expected one tensor",
            "choose the state, such as outputs=lambda y: y[0]",
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
