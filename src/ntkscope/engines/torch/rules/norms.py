"""Norms: scale and bias of normalised features; the gradient of the scale is δ ∘ x̂, summed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct
from ntkscope.engines.torch.rules.base import Arguments, rule_of

aten = torch.ops.aten


@rule_of(aten.layer_norm.default, parameters=("weight", "bias"), captures=("input",))
def _layer_norm(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    shape = list(arguments["normalized_shape"])
    axes = set(range(delta.dim() - len(shape), delta.dim()))
    if name == "bias":
        return _sum_to(delta, axes)
    return _sum_to(delta * F.layer_norm(arguments["input"], shape, eps=arguments["eps"]), axes)


@rule_of(aten.rms_norm.default, parameters=("weight",), captures=("input",))
def _rms_norm(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    shape = list(arguments["normalized_shape"])
    axes = set(range(delta.dim() - len(shape), delta.dim()))
    return _sum_to(delta * F.rms_norm(arguments["input"], shape, eps=arguments["eps"]), axes)


@rule_of(aten.group_norm.default, parameters=("weight", "bias"), captures=("input",))
def _group_norm(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    # One sample is (N, C, *): the channels are axis 1 of it, axis 3 of δ.
    if name == "bias":
        return _sum_to(delta, {3})
    x = arguments["input"]
    normal = F.group_norm(x.flatten(0, 1), arguments["num_groups"], eps=arguments["eps"])
    return _sum_to(delta * normal.reshape(x.shape), {3})


@rule_of(
    aten.batch_norm.default,
    parameters=("weight", "bias"),
    captures=("input", "running_mean", "running_var"),
    applies=lambda a: not a["training"] and a["running_mean"] is not None,
)
def _batch_norm(arguments: Arguments, delta: Tensor, name: str) -> Direct:
    if name == "bias":
        return _sum_to(delta, {3})
    x = arguments["input"]
    shape = (x.shape[0], 1, x.shape[2], *[1] * (x.dim() - 3))
    mean, variance = (arguments[which].reshape(shape) for which in ("running_mean", "running_var"))
    normal = (x - mean) * (variance + arguments["eps"]).rsqrt()
    return _sum_to(delta * normal.to(x.dtype), {3})


def _sum_to(x: Tensor, axes: set[int]) -> Direct:
    """Sums (k, B, ...) over all axes but the first two and ``axes``."""
    others = [axis for axis in range(2, x.dim()) if axis not in axes]
    summed = x.sum(others) if others else x
    return Direct(summed.reshape(*x.shape[:2], -1))
