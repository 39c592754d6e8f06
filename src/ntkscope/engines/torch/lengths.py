"""Lengths and distances in float64 of tensors that are too large to be copied to it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["distance", "furthest", "length"]

# Numbers at a time: so few that a processor keeps them in its cache, four times as quick; elsewhere every
# step is a launch.
_IN_CACHE, _STEP = 1 << 14, 1 << 20


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
