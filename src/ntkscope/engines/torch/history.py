"""What autograd keeps of how a tensor was computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.compat import pytree

__all__ = ["check_leaves", "own_backward", "source_of_own"]


def _functions(result: Tensor) -> Iterator[Any]:
    """The functions of a tensor's history, each once."""
    seen: set[Any] = set()
    stack = [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(function for function, _ in node.next_functions)


def _has_own_backward(function: Any) -> bool:
    return isinstance(function, torch.autograd.function.BackwardCFunction)


def own_backward(result: Tensor) -> tuple[str, ...]:
    """Names of the functions with a backward of their own in a tensor's history."""
    names = {type(f).__name__.removesuffix("Backward") for f in _functions(result) if _has_own_backward(f)}
    return tuple(sorted(names))


def source_of_own(value: Tensor) -> tuple[Any, int] | None:
    """Where the gradient goes from a tensor that a function with a backward of its own has made.

    Returns:
        The function in the history of the one argument that has a gradient, or the one that keeps a
        leaf's, and the number of its result; ``None`` for other functions, and for several such arguments.
    """
    function = value.grad_fn
    if function is None or not _has_own_backward(function):
        return None
    sources = [source for source in function.next_functions if source[0] is not None]
    return sources[0] if len(sources) == 1 else None


def check_leaves(state: Tensor, parameters: Iterable[Tensor], inputs: Any) -> None:
    """Refuses a state that depends on parameters which are none of the model's."""
    known = {id(p) for p in parameters} | {id(x) for x in pytree.tree_leaves(inputs)}
    for function in _functions(state):
        variable = getattr(function, "variable", None)
        # Other leaves are made inside of forward.
        if isinstance(variable, nn.Parameter) and variable.numel() and id(variable) not in known:
            raise ValueError(
                f"the state depends on a trainable parameter of shape {tuple(variable.shape)} that is "
                "none of the model's; register it (nn.ParameterList, nn.ModuleList) or detach it "
                "(requires_grad_(False))"
            )
