"""Convolutions: linear maps on patches of images with any number of axes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Outer
from ntkscope.engines.torch.gradients.sides import Features, ones
from ntkscope.engines.torch.rules.base import Arguments, rule_of

aten = torch.ops.aten


@rule_of(
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    parameters=("weight", "bias"),
    captures=("input",),
    joint=True,
)
def _convolution(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    dims = arguments["weight"].dim() - 2
    groups = arguments["groups"]
    leading = tuple(delta.shape[:2])
    probe_side = _gather(_channels_last(_images(delta, dims), groups), leading)
    if name == "bias":
        return Outer(probe_side, ones(probe_side))
    patches = _Window.of(arguments).patches(_images(arguments["input"], dims), groups)
    return Outer(probe_side, Features(_gather(patches, leading[1:])))


@rule_of(
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    parameters=("weight", "bias"),
    captures=("input",),
)
def _transposed_convolution(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    dims = arguments["weight"].dim() - 2
    leading = tuple(delta.shape[:2])
    images = _images(delta, dims)
    if name == "bias":
        probe_side = _gather(_channels_last(images, 1), leading)
        return Outer(probe_side, ones(probe_side))
    # The roles change: the output's gradient comes in patches, the input as it is.
    groups = arguments["groups"]
    x = _channels_last(_images(arguments["input"], dims), groups)
    patches = _Window.of(arguments).patches(images, groups)
    return Outer(_gather(patches, leading), Features(_gather(x, leading[1:])), transposed=True)


@dataclass(frozen=True)
class _Window:
    """The geometry of a convolution."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, arguments: Arguments) -> _Window:
        kernel = tuple(arguments["weight"].shape[2:])
        dims = len(kernel)
        dilation = _tuple(arguments["dilation"], dims)
        padding = arguments["padding"]
        if padding == "valid":
            sides = [(0, 0)] * dims
        elif padding == "same":
            totals = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(pad, pad) for pad in _tuple(padding, dims)]
        return cls(kernel, _tuple(arguments["stride"], dims), tuple(sides), dilation)

    def patches(self, x: Tensor, groups: int) -> Tensor:
        """(N, C, *spatial) → (N, groups, T, C/groups · kernel), T output positions."""
        if len(self.kernel) == 2 and all(before == after for before, after in self.padding):
            # torch has a fast routine for images; its (features, positions) order costs nothing to turn.
            padding = tuple(before for before, _ in self.padding)
            columns = F.unfold(x, self.kernel, self.dilation, padding, self.stride)
            return columns.unflatten(1, (groups, -1)).mT
        x = F.pad(x, list(itertools.chain(*reversed(self.padding))))
        geometry = zip(self.kernel, self.stride, self.dilation, strict=True)
        for axis, (size, stride, dilation) in enumerate(geometry, start=2):
            # Each unfold appends its window as the last axis.
            x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        dims = len(self.kernel)
        x = x.unflatten(1, (groups, -1))
        spatial, windows = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
        x = x.permute(0, 1, *spatial, 2, *windows)
        return x.flatten(2 + dims).flatten(2, 1 + dims)


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values


def _channels_last(x: Tensor, groups: int) -> Tensor:
    """(N, C, *spatial) → (N, groups, T, C/groups)."""
    return x.flatten(2).unflatten(1, (groups, -1)).mT


def _images(x: Tensor, dims: int) -> Tensor:
    """Joins all leading axes: (..., C, *spatial) → (N, C, *spatial)."""
    return x.reshape(-1, *x.shape[-dims - 1 :])


def _gather(x: Tensor, leading: tuple[int, ...]) -> Tensor:
    """The positions of a sample's images side by side: (N, g, T, F) → (*leading, g, N′·T, F)."""
    axis = len(leading)
    return x.unflatten(0, (*leading, -1)).transpose(axis, axis + 1).flatten(axis + 1, axis + 2)
