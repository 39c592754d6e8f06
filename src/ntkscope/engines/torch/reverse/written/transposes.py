"""How gradients pass back through operations that move or add numbers, probes and samples first.

A view of a value has a view of that value's gradient for its own: what is added to it arrives
at once. So these operations cost nothing when gradients are pulled back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.graph.operators import arguments_of, expands, joins, name_of

__all__ = ["adjoint_of", "joined_slices", "sum_to"]


def joined_slices(node: fx.Node) -> Sequence[tuple[fx.Node, Callable[[Tensor], Tensor]]] | None:
    """The arguments of a ``cat`` or ``stack``, and from its gradient to that of each of them."""
    if not joins(node):
        return None
    parts: Any = node.args[0]
    dim = arguments_of(node)["dim"]
    axis = dim + 2 if dim >= 0 else dim
    if name_of(node) == "stack":
        return [(part, functools.partial(torch.select, dim=axis, index=i)) for i, part in enumerate(parts)]
    found, start = [], 0
    for part in parts:
        size = part.meta["shape"][dim]
        found.append((part, functools.partial(torch.narrow, dim=axis, start=start, length=size)))
        start += size
    return found


def adjoint_of(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """From the gradient of a sum, mean, flip or expansion to its argument's, up to broadcasting."""
    name = name_of(node)
    if name == "flip":
        dims: Any = node.args[1]
        axes = [axis + 2 if axis >= 0 else axis for axis in dims]
        return lambda g: g.flip(axes)
    if expands(node):
        shape = node.all_input_nodes[0].meta["shape"]
        return lambda g: sum_to(g, shape)
    return _spread(node, name) if name in ("sum", "mean") else None


def _spread(node: fx.Node, name: str) -> Callable[[Tensor], Tensor]:
    shape = node.all_input_nodes[0].meta["shape"]
    dims = arguments_of(node).get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    axes = {dim % len(shape) for dim in (dims or range(len(shape)))}
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    factor = 1 / math.prod(shape[axis] for axis in axes) if name == "mean" else 1.0
    return lambda g: (g * factor if factor != 1 else g).reshape(*g.shape[:2], *kept)


def sum_to(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums (k, B, *broadcast shape) to (k, B, *shape)."""
    extra = gradient.dim() - 2 - len(shape)
    if extra:
        gradient = gradient.sum(list(range(2, 2 + extra)))
    axes = [axis + 2 for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis + 2] != 1]
    return gradient.sum(axes, keepdim=True) if axes else gradient
