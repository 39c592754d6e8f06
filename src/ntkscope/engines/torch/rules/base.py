"""Rules: how the gradient of an operation's parameters follows from its inputs and its output's gradient.

A rule speaks of one ATen operation. It names the arguments that may be parameters and
returns, for one of them, the per-sample gradient as a factor. What has no rule is still
right: its parameters take the general way, one gradient per sample by autodiff.

The rules themselves stand in a file a family of layers beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from ntkscope.engines.torch.compat import OpOverload
from ntkscope.engines.torch.gradients.factors import Factor

__all__ = ["Arguments", "GradientFactor", "Rule", "add_rule", "find_rule", "rule_of"]

#: The operation's arguments by name. Tensors that differ between samples have a leading axis B.
Arguments: TypeAlias = Mapping[str, Any]

#: (arguments, δ, name) ↦ the gradient of the parameter ``name``.
GradientFactor: TypeAlias = Callable[[Arguments, Tensor, str], Factor]


def _always(arguments: Arguments) -> bool:
    return True


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
    factor: GradientFactor
    applies: Callable[[Arguments], bool] = _always
    joint: bool = False
    positions: bool = False


_RULES: dict[Any, Rule] = {}


def rule_of(
    *operations: Any,
    parameters: tuple[str, ...],
    captures: tuple[str, ...],
    applies: Callable[[Arguments], bool] = _always,
    joint: bool = False,
    positions: bool = False,
) -> Callable[[GradientFactor], GradientFactor]:
    """Makes the function below it the rule of one or more operations.

    Args:
        operations: Operator overloads.
        parameters: As in :class:`Rule`, like all that follow.
        captures: As there.
        applies: As there.
        joint: As there.
        positions: As there.

    Raises:
        TypeError: If an operation is not an operator overload.
    """

    def register(factor: GradientFactor) -> GradientFactor:
        rule = Rule(parameters, captures, factor, applies, joint, positions)
        for operation in operations:
            add_rule(operation, rule)
        return factor

    return register


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
