"""How gradients pass back through operations that move or add numbers, probes and samples first.

A view of a value has a view of that value's gradient for its own: what is added to it arrives
at once. So these operations cost nothing when gradients are pulled back.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.compat import OpOverload, arguments_of, name_of_operator

__all__ = ["SPLITS", "adjoint_of", "joined_slices", "name_of", "sum_to", "unbound_axis", "view_of"]

#: (k, B, *shape of the source) → (k, B, *shape of the view), the same memory.
View = Callable[[Any], Any]

_RESHAPES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone",
    "alias",
}  # fmt: skip
_PERMUTES = {"t", "mT", "numpy_T", "transpose", "permute", "movedim", "swapaxes", "moveaxis"}
#: Operations that take a tensor apart.
SPLITS = {"chunk", "split", "split_with_sizes", "unbind", "tensor_split", "unsafe_chunk", "unsafe_split"}
_PARTS = {"select", "slice", "narrow"}


def name_of(node: fx.Node) -> str:
    """The operation's bare name, or an empty string."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    target = node.target
    return name_of_operator(target) if isinstance(target, OpOverload) else ""


def view_of(node: fx.Node) -> View | None:
    """From the gradient of the node's first argument to its own, if it is a view of it."""
    name = name_of(node)
    if name == "getitem" and name_of(node.args[0]) in SPLITS:  # type: ignore[arg-type]
        index = node.args[1]
        return lambda parts: parts[index]
    if name in _RESHAPES:
        shape = node.meta["shape"]
        return lambda block: block.view(*block.shape[:2], *shape)
    if name in _PERMUTES:
        order = _permutation(node)
        return lambda block: block.permute(order)
    if name == "dropout" and not _argument(node, 2, "train"):
        return lambda block: block
    if name in SPLITS or name in _PARTS:
        return _shifted(node)
    return None


def _argument(node: fx.Node, place: int, name: str) -> Any:
    """An argument by its place in the schema or by its name, its default if it was not given."""
    target: Any = node.target
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(name, arguments_of(target)[place].default_value)


def _shifted(node: fx.Node) -> View:
    """The operation itself, with two axes more before the one that it speaks of."""
    target: Any = node.target
    names = [argument.name for argument in arguments_of(target)]
    dim = _argument(node, names.index("dim"), "dim")
    given = dict(zip(names[1:], node.args[1:], strict=False)) | dict(node.kwargs)
    given["dim"] = dim + 2 if dim >= 0 else dim
    return lambda block: target(block, **given)


def unbound_axis(node: fx.Node) -> int | None:
    """The axis along which an ``unbind`` takes its argument apart."""
    if name_of(node) != "unbind":
        return None
    axis: int = _argument(node, 1, "dim")
    return axis % len(node.all_input_nodes[0].meta["shape"])


def _permutation(node: fx.Node) -> list[int]:
    """The axes of (k, B, *result) among those of (k, B, *argument), read off distinct sizes."""
    (source,) = node.all_input_nodes
    sizes = list(range(2, 2 + len(source.meta["shape"])))
    target: Any = node.target
    turned = target(torch.empty(sizes, device="meta"), *node.args[1:], **node.kwargs)
    return [0, 1, *turned.shape]


def joined_slices(node: fx.Node) -> Sequence[tuple[fx.Node, Callable[[Tensor], Tensor]]] | None:
    """The arguments of a ``cat`` or ``stack``, and from its gradient to that of each of them."""
    name = name_of(node)
    if name not in ("cat", "concat", "stack"):
        return None
    parts: Any = node.args[0]
    dim = _argument(node, 1, "dim")
    axis = dim + 2 if dim >= 0 else dim
    if name == "stack":
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
    if name in ("expand", "expand_as", "broadcast_to"):
        shape = node.all_input_nodes[0].meta["shape"]
        return lambda g: sum_to(g, shape)
    return _spread(node, name) if name in ("sum", "mean") else None


def _spread(node: fx.Node, name: str) -> Callable[[Tensor], Tensor]:
    shape = node.all_input_nodes[0].meta["shape"]
    names = [argument.name for argument in arguments_of(node.target)]
    dims: Any = _argument(node, names.index("dim"), "dim") if "dim" in names else None
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
