"""Parameters that meet activations entry by entry, broadcast: gains, biases, LayerScale, positions.

The gradient is δ times the slope of the operation, summed over what the parameter is broadcast along.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import OpOverload, schema_arguments, schema_of
from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.rules.base import Arguments, Rule, add_family, add_rule, formed_shape, rule_of
from ntkscope.engines.torch.rules.contractions import Contraction, Labels, broadcast_labels

aten = torch.ops.aten


def _broadcast(delta: Tensor, shape: tuple[int, ...], slope: Tensor | None = None) -> Factor:
    """From δ, (k, B, *output), to a parameter of this shape; the slope has shape (B, ...)."""
    others = () if slope is None else (broadcast_labels(slope.dim() - 1),)
    output = broadcast_labels(delta.dim() - 2)
    contraction = Contraction(broadcast_labels(len(shape)), shape, others, output)
    return contraction.gradient(delta, [] if slope is None else [slope])


def _sum_rule(operation: Any, factor_of_self: float, factor_of_other: float, scaled: str) -> None:
    """Registers the rule of a sum whose ``scaled`` argument is multiplied by ``alpha``."""
    signs = {"self": factor_of_self, "other": factor_of_other}

    def gradient(arguments: Arguments, delta: Tensor, name: str) -> Factor:
        times = signs[name] * (arguments["alpha"] if name == scaled else 1)
        return _broadcast(delta if times == 1 else times * delta, tuple(arguments[name].shape))

    add_rule(operation, Rule(("self", "other"), (), gradient, shape=formed_shape))


for _operation, _signs, _scaled in (
    (aten.add.Tensor, (1, 1), "other"),
    (aten.sub.Tensor, (1, -1), "other"),
    (aten.subtract.Tensor, (1, -1), "other"),
    (aten.rsub.Tensor, (-1, 1), "self"),
):
    _sum_rule(_operation, *_signs, _scaled)


@rule_of(
    aten.mul.Tensor,
    aten.multiply.Tensor,
    parameters=("self", "other"),
    captures=("self", "other"),
    applies=lambda a: not any(isinstance(x, Tensor) and x.is_complex() for x in a.values()),
    shape=formed_shape,
)
def _product(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    shape = tuple(arguments[name].shape[1:])
    slope = arguments["other" if name == "self" else "self"]
    if not isinstance(slope, Tensor):
        return _broadcast(delta * slope, shape)
    return _broadcast(delta, shape, slope)


@rule_of(aten.prelu.default, parameters=("weight",), captures=("self",), shape=formed_shape)
def _prelu(arguments: Arguments, delta: Tensor, name: str) -> Factor:
    # One sample is (N, C, *).
    output = broadcast_labels(delta.dim() - 2)
    channels: Labels = (output[min(1, len(output) - 1)],)
    contraction = Contraction(channels, tuple(arguments[name].shape), (output,), output)
    return contraction.gradient(delta, [arguments["self"].clamp(max=0)])


@functools.cache
def _pointwise(operation: Any) -> Rule | None:
    """The rule of any other operation that works entry by entry; its slope is found by autograd."""
    if not isinstance(operation, OpOverload) or torch.Tag.pointwise not in operation.tags:
        return None
    if torch.Tag.nondeterministic_seeded in operation.tags or schema_of(operation).is_mutable:
        return None
    arguments = schema_arguments(operation)
    names = tuple(argument.name for argument in arguments if str(argument.type) == "Tensor")

    def factor(arguments: Arguments, delta: Tensor, name: str) -> Factor:
        return _broadcast(delta, tuple(arguments[name].shape[1:]), _slope(operation, arguments, name, delta))

    def applies(arguments: Arguments) -> bool:
        return not any(isinstance(value, Tensor) and value.is_complex() for value in arguments.values())

    return Rule(names, names, factor, applies, shape=formed_shape)


add_family(_pointwise)


def _slope(operation: Any, arguments: Arguments, name: str, delta: Tensor) -> Tensor:
    """∂(output)/∂(entry of an argument that it depends on), shape (B, *output)."""
    shape = delta.shape[1:]

    def aligned(value: Any) -> Any:
        """With the samples' axis where broadcasting lets it meet the others'."""
        if not isinstance(value, Tensor):
            return value
        return value.reshape(len(value), *[1] * (len(shape) - value.dim()), *value.shape[1:])

    given = {argument.name: aligned(arguments[argument.name]) for argument in schema_arguments(operation)}
    given[name] = given[name].expand(shape).detach().requires_grad_()
    with torch.enable_grad():
        output = operation(**given)
        (slope,) = torch.autograd.grad(output, given[name], torch.ones_like(output))
    return slope
