"""Tensors that share memory: how one is read from another, and what a write into it makes of the other.

Where a tensor lies in another's memory is read off shapes, strides and offsets, whatever operations led
to it: slices of some axes, of which some are dropped, in another order; else places one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.errors import StructureError

__all__ = ["is_root", "read_part", "write_part"]

aten = torch.ops.aten

#: Makes a node: (operation, arguments) ↦ node.
Make: TypeAlias = Callable[..., fx.Node]
#: Makes a node of a tensor that is the same for all samples.
Constant: TypeAlias = Callable[[Tensor], fx.Node]


@dataclass(frozen=True)
class _Slices:
    """Slices of every axis of a tensor, some dropped, in another order.

    Attributes:
        cuts: (axis, start, stop, step) of the axes that are cut.
        order: The axes of the tensor in the part's order; those that it has not are of length 1.
        lengths: Of all axes of the tensor, when cut.
    """

    cuts: tuple[tuple[int, int, int, int], ...]
    order: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, whole: Tensor, part: Tensor) -> _Slices | None:
        """Where a part lies in a tensor; ``None`` if slices do not say it."""
        rest = int(part.storage_offset()) - int(whole.storage_offset())
        starts = [0] * whole.dim()
        for axis in _by_stride(whole):
            starts[axis], rest = divmod(rest, whole.stride(axis))
        if rest or not all(0 <= start < size for start, size in zip(starts, whole.shape, strict=True)):
            return None
        steps, lengths, order = [1] * whole.dim(), [1] * whole.dim(), []
        for size, stride in zip(part.shape, part.stride(), strict=True):
            if size == 1:
                continue
            fitting = [axis for axis in _by_stride(whole) if 0 < whole.stride(axis) <= stride]
            fitting = [axis for axis in fitting if axis not in order][:1]
            if not fitting or stride % whole.stride(fitting[0]):
                return None
            (axis,) = fitting
            steps[axis], lengths[axis] = stride // whole.stride(axis), size
            if starts[axis] + steps[axis] * (size - 1) >= whole.shape[axis]:
                return None
            order.append(axis)
        # Axes of length 1 may stand anywhere: where nothing needs to be turned.
        rest_of_them = [axis for axis in range(whole.dim()) if axis not in order]
        order = sorted(order + rest_of_them) if order == sorted(order) else order + rest_of_them
        cuts = [
            (axis, start, start + step * (length - 1) + 1, step)
            for axis, (start, step, length) in enumerate(zip(starts, steps, lengths, strict=True))
            if length != whole.shape[axis]
        ]
        return cls(tuple(cuts), tuple(order), tuple(lengths))


def is_root(value: Tensor) -> bool:
    """Whether no two of its entries are the same memory, in an order in which axes lie within one another."""
    size = 1
    for axis in reversed(_by_stride(value)):
        if value.stride(axis) < size:
            return False
        size = value.stride(axis) * value.shape[axis]
    return True


def read_part(make: Make, constant: Constant, whole: Tensor, node: fx.Node, part: Tensor) -> fx.Node:
    """A node of a part of a tensor.

    Args:
        make: Makes nodes.
        constant: Makes nodes of tensors.
        whole: The tensor.
        node: Its node.
        part: What shares its memory.

    Raises:
        StructureError: If the part is not one, or has another dtype.
    """
    slices = _slices(whole, part)
    if slices is None:
        flat = make(aten.reshape.default, node, [-1])
        return make(aten.index.Tensor, flat, [constant(_places(whole, part))])
    for axis, start, stop, step in slices.cuts:
        node = make(aten.slice.Tensor, node, axis, start, stop, step)
    if slices.order != tuple(range(whole.dim())):
        node = make(aten.permute.default, node, list(slices.order))
    lengths = [slices.lengths[axis] for axis in slices.order]
    return node if lengths == list(part.shape) else make(aten.reshape.default, node, list(part.shape))


def write_part(
    make: Make, constant: Constant, whole: Tensor, node: fx.Node, part: Tensor, source: fx.Node
) -> fx.Node:
    """A node of a tensor after ``source`` was written into a part of it.

    Args:
        make: As in :func:`read_part`.
        constant: As there.
        whole: The tensor.
        node: Its node, before.
        part: What was written into.
        source: A node of the part, after.

    Raises:
        StructureError: As there.
    """
    slices = _slices(whole, part)
    if slices is None:
        places = constant(_places(whole, part).flatten())
        flat, values = make(aten.reshape.default, node, [-1]), make(aten.reshape.default, source, [-1])
        written = make(aten.index_put.default, flat, [places], values)
        return make(aten.reshape.default, written, list(whole.shape))
    lengths = [slices.lengths[axis] for axis in slices.order]
    if lengths != list(part.shape):
        source = make(aten.reshape.default, source, lengths)
    if slices.order != tuple(range(whole.dim())):
        back = sorted(range(whole.dim()), key=slices.order.__getitem__)
        source = make(aten.permute.default, source, back)
    bases = [node]
    for axis, start, stop, step in slices.cuts[:-1]:
        bases.append(make(aten.slice.Tensor, bases[-1], axis, start, stop, step))
    for base, (axis, start, stop, step) in reversed(list(zip(bases, slices.cuts, strict=False))):
        source = make(aten.slice_scatter.default, base, source, axis, start, stop, step)
    return source


def _slices(whole: Tensor, part: Tensor) -> _Slices | None:
    same = (whole.dtype, whole.is_conj(), whole.is_neg()) == (part.dtype, part.is_conj(), part.is_neg())
    if not same or not is_root(whole):
        raise StructureError(
            "the model writes in place into a part of a tensor, which is read in another way"
        )
    return _Slices.of(whole, part)


def _places(whole: Tensor, part: Tensor) -> Tensor:
    """Which entries of a tensor the part shows, as numbers."""
    offset = part.storage_offset() - whole.storage_offset()
    size = max(_span(whole), offset + _span(part))
    places = torch.full((size,), -1)
    places.as_strided(whole.shape, whole.stride(), 0).copy_(torch.arange(whole.numel()).reshape(whole.shape))
    if offset >= 0:
        found = places.as_strided(part.shape, part.stride(), offset).clone()
        if bool((found >= 0).all()):
            return found.to(whole.device)
    raise StructureError("the model writes in place into a part of a tensor, of which it reads another")


def _span(value: Tensor) -> int:
    sizes: Sequence[Any] = list(zip(value.shape, value.stride(), strict=True))
    return 1 + sum((size - 1) * stride for size, stride in sizes)


def _by_stride(value: Tensor) -> list[int]:
    """The axes that have a length, the widest steps first."""
    axes = [axis for axis, size in enumerate(value.shape) if size > 1]
    strides: Any = value.stride()
    return sorted(axes, key=lambda axis: -strides[axis])
