"""Check what the user hands over: the inputs, and the state that the model makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ntkscope.data import as_inputs
from ntkscope.engines.torch.compat import pytree
from ntkscope.errors import StateError, argument, said

__all__ = ["as_arguments", "check_state", "checked_inputs"]


def checked_inputs(inputs: Any, floating: torch.dtype, detach: bool = True) -> Any:
    """A copy of the inputs, detached or not; NumPy's floating numbers come in the dtype ``floating``.

    Raises:
        TypeError: If they hold no tensor.
        ValueError: If one is empty.
    """
    inputs = as_inputs(inputs, floating)
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
    with torch.inference_mode(False):
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
    source = f"{argument('outputs')} or {argument('layer')} picked" if chosen else "the model returned"
    if not isinstance(state, Tensor):
        raise StateError(
            f"{source} {_describe(state)}, expected one tensor",
            f"choose the state, such as {said('outputs=lambda y: y[0]', '--output 0')}",
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
