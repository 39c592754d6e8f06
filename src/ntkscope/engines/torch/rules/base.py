"""Rules: how the gradient of an operation's parameters follows from its inputs and its output's gradient.

A rule speaks of one ATen operation. It names the arguments that may be parameters and
returns, for one of them, the per-sample gradient as a factor. What has no rule is still
right: its parameters take the general way, one gradient per sample by autodiff.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ntkscope.engines.torch.compat import OpOverload
from ntkscope.engines.torch.gradients.factors import Direct, Factor, Features, Lookup, Outer

__all__ = ["Arguments", "Rule", "add_rule", "find_rule"]

#: The operation's arguments by name. Tensors that differ between samples have a leading axis B.
Arguments: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """The gradient rule of one operation.

    Attributes:
        parameters: Names of the arguments that may be parameters.
        captures: Names of the tensor arguments whose values the rule needs.
        factor: (arguments, δ, name) ↦ the gradient of the parameter ``name``; δ is the gradient
            of the output, shape (k, B, *output shape of one sample).
        applies: Whether the rule holds for these arguments (tensors stand for their shapes only).
        joint: Whether all its parameters are outer products with the same δ, so that a weight
            and its bias are treated as one.
        positions: Whether it does the same at every position, so that several uses of one parameter
            (the steps of a recurrence) may be stacked along a new axis after the samples'.
    """

    parameters: tuple[str, ...]
    captures: tuple[str, ...]
    factor: Callable[[Arguments, Tensor, str], Factor]
    applies: Callable[[Arguments], bool] = lambda arguments: True
    joint: bool = False
    positions: bool = False


_RULES: dict[Any, Rule] = {}


def add_rule(operation: Any, rule: Rule) -> None:
    """Teach the layer-wise methods a rule for an operation of one's own.

    Args:
        operation: An operator overload, such as ``torch.ops.mylib.scale.default``.
        rule: Its rule. It is checked against autodiff each time it is first used on a model.

    Raises:
        TypeError: If ``operation`` is not an operator overload.
    """
    if not isinstance(operation, OpOverload):
        raise TypeError(
            f"a rule is for an operator overload such as torch.ops.mylib.scale.default, found {operation!r}; "
            "register the operation with torch.library.custom_op and pass its .default overload"
        )
    _RULES[operation] = rule


def find_rule(operation: Any) -> Rule | None:
    """The rule of an operation, if there is one."""
    return _RULES.get(operation)


# Linear maps. δ has shape (k, B, ..., O), the input (B, ..., I).


def _positions(x: Tensor, leading: int) -> Tensor:
    """Flattens what stands between the leading axes and the features: (..., T, features)."""
    return x.reshape(*x.shape[:leading], -1, x.shape[-1]).unsqueeze(leading)


def _ones(probe_side: Tensor) -> Features:
    """The features of a bias: 1 at every position."""
    return Features(probe_side.new_ones(*probe_side.shape[1:4], 1))


def _linear(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    probe_side = _positions(delta, 2)
    if name == "bias":
        return Outer(probe_side, _ones(probe_side))
    return Outer(probe_side, Features(_positions(arguments["input"], 1)))


def _matmul(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    # x @ W with W of shape (I, O).
    return Outer(_positions(delta, 2), Features(_positions(arguments[_LEFT[name]], 1)), transposed=True)


_LEFT = {"other": "self", "mat2": "self"}


def _embedding(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    index = arguments["indices"]
    probe_side = delta.reshape(*delta.shape[:2], 1, -1, delta.shape[-1])
    flat = index.reshape(index.shape[0], -1)
    padding = arguments.get("padding_idx", -1)
    if padding >= 0:
        probe_side = probe_side * (flat != padding)[None, :, None, :, None]
    return Outer(probe_side, Lookup(flat, arguments["weight"].shape[0]), transposed=True)


# Convolutions: linear maps on patches.


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values


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


def _convolution(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    dims = arguments["weight"].dim() - 2
    groups = arguments["groups"]
    leading = tuple(delta.shape[:2])
    probe_side = _gather(_channels_last(_images(delta, dims), groups), leading)
    if name == "bias":
        return Outer(probe_side, _ones(probe_side))
    patches = _Window.of(arguments).patches(_images(arguments["input"], dims), groups)
    return Outer(probe_side, Features(_gather(patches, leading[1:])))


def _transposed_convolution(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    dims = arguments["weight"].dim() - 2
    leading = tuple(delta.shape[:2])
    images = _images(delta, dims)
    if name == "bias":
        probe_side = _gather(_channels_last(images, 1), leading)
        return Outer(probe_side, _ones(probe_side))
    # The roles change: the output's gradient comes in patches, the input as it is.
    groups = arguments["groups"]
    x = _channels_last(_images(arguments["input"], dims), groups)
    patches = _Window.of(arguments).patches(images, groups)
    return Outer(_gather(patches, leading), Features(_gather(x, leading[1:])), transposed=True)


# Scale and bias of normalised features: the gradient of the scale is δ ∘ x̂, summed.


def _sum_to(x: Tensor, axes: set[int]) -> Direct:
    """Sums (k, B, ...) over all axes but the first two and ``axes``."""
    others = [axis for axis in range(2, x.dim()) if axis not in axes]
    summed = x.sum(others) if others else x
    return Direct(summed.reshape(*x.shape[:2], -1))


def _layer_norm(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    shape = list(arguments["normalized_shape"])
    axes = set(range(delta.dim() - len(shape), delta.dim()))
    if name == "bias":
        return _sum_to(delta, axes)
    return _sum_to(delta * F.layer_norm(arguments["input"], shape, eps=arguments["eps"]), axes)


def _rms_norm(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    shape = list(arguments["normalized_shape"])
    axes = set(range(delta.dim() - len(shape), delta.dim()))
    return _sum_to(delta * F.rms_norm(arguments["input"], shape, eps=arguments["eps"]), axes)


def _group_norm(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    # One sample is (N, C, *): the channels are axis 1 of it, axis 3 of δ.
    if name == "bias":
        return _sum_to(delta, {3})
    x = arguments["input"]
    normal = F.group_norm(x.flatten(0, 1), arguments["num_groups"], eps=arguments["eps"])
    return _sum_to(delta * normal.reshape(x.shape), {3})


def _batch_norm(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    if name == "bias":
        return _sum_to(delta, {3})
    x = arguments["input"]
    shape = (x.shape[0], 1, x.shape[2], *[1] * (x.dim() - 3))
    mean, variance = (arguments[which].reshape(shape) for which in ("running_mean", "running_var"))
    normal = (x - mean) * (variance + arguments["eps"]).rsqrt()
    return _sum_to(delta * normal.to(x.dtype), {3})


def _register() -> None:
    aten = torch.ops.aten
    weight_bias = ("weight", "bias")
    # A weight of one axis leaves the output without a features' axis.
    _RULES[aten.linear.default] = Rule(
        weight_bias, ("input",), _linear, lambda a: a["weight"].dim() == 2, joint=True, positions=True
    )
    _RULES[aten.matmul.default] = Rule(
        ("other",), ("self",), _matmul, lambda a: a["other"].dim() == 2 and a["self"].dim() >= 2
    )
    _RULES[aten.mm.default] = Rule(("mat2",), ("self",), _matmul)
    _RULES[aten.embedding.default] = Rule(
        ("weight",), ("indices",), _embedding, lambda a: not a.get("scale_grad_by_freq", False)
    )
    for dims in (1, 2, 3):
        rule = Rule(weight_bias, ("input",), _convolution, joint=True)
        for overload in ("default", "padding"):
            _RULES[getattr(getattr(aten, f"conv{dims}d"), overload)] = rule
        transposed = getattr(aten, f"conv_transpose{dims}d")
        overload = transposed.default if dims == 1 else transposed.input
        _RULES[overload] = Rule(weight_bias, ("input",), _transposed_convolution)
    _RULES[aten.layer_norm.default] = Rule(weight_bias, ("input",), _layer_norm)
    _RULES[aten.rms_norm.default] = Rule(("weight",), ("input",), _rms_norm)
    _RULES[aten.group_norm.default] = Rule(weight_bias, ("input",), _group_norm)
    _RULES[aten.batch_norm.default] = Rule(
        weight_bias,
        ("input", "running_mean", "running_var"),
        _batch_norm,
        lambda a: not a["training"] and a["running_mean"] is not None,
    )


_register()
