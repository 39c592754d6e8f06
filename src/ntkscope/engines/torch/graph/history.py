"""What autograd keeps of how a tensor was computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["own_backward"]


def own_backward(result: Tensor) -> tuple[str, ...]:
    """Names of the functions with a backward of their own in a tensor's history."""
    names: dict[str, None] = {}
    seen: set[Any] = set()
    stack = [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names[type(node).__name__.removesuffix("Backward")] = None
        stack.extend(function for function, _ in node.next_functions)
    return tuple(sorted(names))
