"""Tables that are read by indices: linear maps of one-hot features, which stay indices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Order, Outer
from ntkscope.engines.torch.gradients.sides import Lookup
from ntkscope.engines.torch.rules.base import Arguments, GroupShape, rule_of

aten = torch.ops.aten


def _read_once(arguments: Arguments, name: str, output: tuple[int, ...]) -> GroupShape:
    """The table's gradient has as many numbers as were read, wherever they stand in it."""
    size = max(math.prod(output), 1)
    return GroupShape(size, size, 1.0)


@rule_of(
    aten.embedding.default,
    parameters=("weight",),
    captures=("indices",),
    applies=lambda a: not a.get("scale_grad_by_freq", False),
    shape=_read_once,
)
def _embedding(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    index = arguments["indices"]
    probe_side = delta.reshape(*delta.shape[:2], 1, -1, delta.shape[-1])
    flat = index.reshape(index.shape[0], -1)
    padding = arguments.get("padding_idx", -1)
    if padding >= 0:
        probe_side = probe_side * (flat != padding)[None, :, None, :, None]
    return Outer(probe_side, Lookup(flat, arguments["weight"].shape[0]), transposed=True)


def _indexed(arguments: Arguments) -> list[int]:
    """The axes that ``index`` takes entries of."""
    names = itertools.takewhile(arguments.__contains__, (f"indices[{n}]" for n in itertools.count()))
    return [axis for axis, name in enumerate(names) if arguments[name] is not None]


def _is_a_table(arguments: Arguments) -> bool:
    axes = _indexed(arguments)
    kinds = [arguments[f"indices[{axis}]"].dtype for axis in axes]
    side_by_side = axes == list(range(axes[0], axes[0] + len(axes)))
    return side_by_side and not {torch.bool, torch.uint8} & set(kinds)


@rule_of(
    aten.index.Tensor,
    parameters=("self",),
    captures=("indices",),
    applies=_is_a_table,
    shape=_read_once,
)
def _index(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    axes = _indexed(arguments)
    return _read(delta, arguments[name].shape, axes, [arguments[f"indices[{axis}]"] for axis in axes])


@rule_of(
    aten.index_select.default,
    parameters=("self",),
    captures=("index",),
    applies=lambda a: a["self"].dim() > 0,
    shape=_read_once,
)
def _index_select(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    index = arguments["index"]
    shape = arguments[name].shape
    return _read(delta, shape, [arguments["dim"] % len(shape)], [index.reshape(len(index), -1)])


@rule_of(
    aten.gather.default,
    parameters=("self",),
    captures=("index",),
    applies=lambda a: a["self"].dim() > 0,
    shape=_read_once,
)
def _gather(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    # Along the other axes, every entry is read at its own place.
    index, shape = arguments["index"], arguments[name].shape
    dim = arguments["dim"] % len(shape)
    places: list[Tensor] = []
    for axis, size in enumerate(index.shape[1:]):
        own = [1] * index.dim()
        own[axis + 1] = size
        places.append(index if axis == dim else torch.arange(size, device=index.device).reshape(own))
    return _read(delta, shape, list(range(len(shape))), torch.broadcast_tensors(*places))


@rule_of(aten.take.default, parameters=("self",), captures=("index",), shape=_read_once)
def _take(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    return _read(delta, (arguments[name].numel(),), [0], [arguments["index"]])


def _read(delta: Tensor, shape: Sequence[int], axes: list[int], places: Sequence[Tensor]) -> Outer:
    """The gradient of a table from that of what was read of it.

    Args:
        delta: (k, B, *axes before, *places, *axes after).
        shape: The table's.
        axes: Those that are read, side by side.
        places: For each of them, indices of shape (B, ...); they are broadcast.
    """
    before, read, after = (
        math.prod(part) for part in (shape[: axes[0]], shape[axes[0] : axes[-1] + 1], shape[axes[-1] + 1 :])
    )
    dims = max(index.dim() for index in places)
    flat: Tensor | int = 0
    for axis, index in zip(axes, places, strict=True):
        index = index.reshape(len(index), *[1] * (dims - index.dim()), *index.shape[1:])
        flat = flat * shape[axis] + index % shape[axis]
    assert isinstance(flat, Tensor)
    flat = flat.reshape(len(flat), -1)
    positions = flat.shape[1]
    # The places become the positions, the other axes the outputs.
    block = delta.reshape(*delta.shape[:2], before, positions, after)
    probe_side = block.transpose(2, 3).reshape(*delta.shape[:2], 1, positions, before * after)
    table = Lookup(flat, read)
    if before == 1:
        return Outer(probe_side, table, transposed=True)
    return Outer(probe_side, table, order=Order((before, after, read), (0, 2, 1)))
