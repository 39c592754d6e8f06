"""Lengths and distances in float64 of tensors that are too large to be copied to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["distance", "furthest", "joint_distance", "joint_length", "joint_sums", "length"]

# Numbers at a time: so few that a processor keeps them in its cache, four times as quick; elsewhere every
# step is a launch.
_IN_CACHE, _STEP = 1 << 14, 1 << 20
# Tensors that are smaller together are taken as one: each on its own takes longer than its numbers.
_JOINT = 1 << 15


def _differences(first: Tensor, second: Tensor | None) -> Iterator[Tensor]:
    """The entries of the first tensor, or of the difference, in float64, some at a time."""
    ours = first.reshape(-1)
    theirs = None if second is None else second.reshape(-1)
    step = _IN_CACHE if ours.device.type == "cpu" else _STEP
    for start in range(0, ours.numel(), step):
        part = ours[start : start + step].double()
        yield part if theirs is None else part - theirs[start : start + step].to(part)


def length(value: Tensor) -> float:
    """‖x‖ of all entries.

    >>> length(torch.tensor([3.0, 4.0]))
    5.0
    """
    return math.hypot(*(float(part.norm()) for part in _differences(value, None)))


def distance(first: Tensor, second: Tensor) -> float:
    """‖x - y‖ of all entries of two tensors of one size."""
    return math.hypot(*(float(part.norm()) for part in _differences(first, second)))


def furthest(first: Tensor, second: Tensor | None = None) -> float:
    """The largest |x| or |x - y|; NaN if there is one."""
    largest = [part.abs().max() for part in _differences(first, second)]
    return float(torch.stack(largest).max()) if largest else 0.0


def joint_length(values: Sequence[Tensor]) -> float:
    """‖x‖ of the entries of all tensors together.

    >>> joint_length([torch.tensor([2.0]), torch.tensor([[3.0], [6.0]])])
    7.0
    """
    return math.hypot(*(length(_joined(values, group)) for group in _groups(values)))


def joint_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """‖x - y‖ of the entries of all tensors together, which are of the same sizes in both."""
    return math.hypot(*(distance(_joined(first, group), _joined(second, group)) for group in _groups(first)))


def joint_sums(values: Sequence[Tensor]) -> Iterator[Tensor]:
    """Sums of entries, in their own dtype, of which at least one is not finite where an entry is not."""
    for group in _groups(values):
        yield _joined(values, group).sum()


def _groups(values: Sequence[Tensor]) -> Iterator[range]:
    """Tensors that stand side by side, are small together and lie on one device."""
    start, size = 0, 0
    for index, value in enumerate(values):
        fits = size + value.numel() <= _JOINT and value.device == values[start].device
        if index > start and not fits:
            yield range(start, index)
            start, size = index, 0
        size += value.numel()
    if values:
        yield range(start, len(values))


def _joined(values: Sequence[Tensor], group: range) -> Tensor:
    if len(group) == 1:
        return values[group.start]
    return torch.cat([values[index].reshape(-1) for index in group])
