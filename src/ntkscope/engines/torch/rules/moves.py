"""Parameters that are repeated, put beside other values, or cast: their gradients are parts of δ, summed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import TO_COPY
from ntkscope.engines.torch.gradients.factors import Direct, Factor
from ntkscope.engines.torch.rules.base import Arguments, formed_shape, rule_of
from ntkscope.engines.torch.rules.contractions import Contraction, broadcast_labels

aten = torch.ops.aten


@rule_of(
    aten.expand.default,
    aten.expand_as.default,
    aten.broadcast_to.default,
    parameters=("self",),
    captures=(),
    shape=formed_shape,
)
def _expand(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    shape = tuple(arguments[name].shape)
    output = broadcast_labels(delta.dim() - 2)
    return Contraction(broadcast_labels(len(shape)), shape, (), output).gradient(delta, [])


@rule_of(aten.repeat.default, aten.tile.default, parameters=("self",), captures=(), shape=formed_shape)
def _repeat(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    # Copies stand side by side along every axis, and along new axes in front.
    shape = tuple(arguments[name].shape)
    sizes = [1] * (delta.dim() - 2 - len(shape)) + list(shape)
    split = [
        part for size, own in zip(delta.shape[2:], sizes, strict=True) for part in (size // max(own, 1), own)
    ]
    copies = [axis + 2 for axis in range(0, len(split), 2)]
    parts = delta.reshape(*delta.shape[:2], *split)
    return _flat(parts.sum(copies) if copies else parts)


@rule_of(
    aten.repeat_interleave.self_int,
    parameters=("self",),
    captures=(),
    applies=lambda a: a["dim"] is not None,
    shape=formed_shape,
)
def _repeat_interleave(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    axis = arguments["dim"] % arguments[name].dim() + 2
    return _flat(delta.unflatten(axis, (arguments[name].shape[axis - 2], -1)).sum(axis + 1))


@rule_of(
    aten.cat.default,
    aten.concat.default,
    aten.concatenate.default,
    parameters=("tensors",),
    captures=(),
    shape=formed_shape,
)
def _cat(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    axis = arguments["dim"] % (delta.dim() - 2)
    number = _number(name)
    # An empty list of numbers may stand among them, whatever its axes.
    before = [arguments[f"tensors[{index}]"] for index in range(number)]
    start = sum(part.shape[axis] for part in before if part.dim() > axis)
    return _flat(delta.narrow(axis + 2, start, arguments[name].shape[axis]))


@rule_of(aten.stack.default, parameters=("tensors",), captures=(), shape=formed_shape)
def _stack(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    return _flat(delta.select(arguments["dim"] % (delta.dim() - 2) + 2, _number(name)))


@rule_of(
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    TO_COPY,
    aten.type_as.default,
    parameters=("self",),
    captures=(),
    applies=lambda a: a["self"].is_floating_point(),
    shape=formed_shape,
)
def _cast(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    return _flat(delta)


def _flat(x: Tensor) -> Direct:
    return Direct(x.reshape(*x.shape[:2], math.prod(x.shape[2:])))


def _number(name: str) -> int:
    """Of an argument in a list."""
    return int(name.partition("[")[2].rstrip("]"))
