"""Rules: how the gradient of an operation's parameters follows from its inputs and its output's gradient.

A rule speaks of one ATen operation. It names the arguments that may be parameters and
returns, for one of them, the per-sample gradient as a factor. What has no rule is still
right: its parameters take the general way, one gradient per sample by autodiff.

The rules themselves stand in a file a family of layers beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ntkscope.engines.torch.compat import OpOverload
from ntkscope.engines.torch.gradients.factors import Factor

__all__ = [
    "Arguments",
    "GradientFactor",
    "GroupShape",
    "Rule",
    "add_family",
    "add_rule",
    "find_rule",
    "formed_shape",
    "rule_of",
]

#: The operation's arguments by name, those in a list as "tensors[0]", "tensors[1]", and so on. Tensors
#: that are captured have a leading axis B.
Arguments: TypeAlias = Mapping[str, Any]

#: (arguments, δ, name) ↦ the gradient of the parameter ``name``.
GradientFactor: TypeAlias = Callable[[Arguments, Tensor, str], Factor]


class GroupShape(NamedTuple):
    """A use of parameters seen as one linear map, for one sample and probe.

    Attributes:
        outputs: Numbers of an output at one position.
        parameters: Numbers in the parameters.
        positions: Where the map is used.
    """

    outputs: int
    parameters: int
    positions: float


#: (arguments, name, shape of the output) ↦ sizes of the use of the parameter ``name``, tensors by their
#: shapes alone.
ShapeOf: TypeAlias = Callable[[Arguments, str, tuple[int, ...]], GroupShape]


def _always(arguments: Arguments) -> bool:
    return True


def _matrix_shape(arguments: Arguments, name: str, output: tuple[int, ...]) -> GroupShape:
    """Of a linear map whose outputs are the first axis of its weight."""
    shape = tuple(arguments[name].shape) or (1,)
    return GroupShape(shape[0], math.prod(shape), math.prod(output) / max(shape[0], 1))


def formed_shape(arguments: Arguments, name: str, output: tuple[int, ...]) -> GroupShape:
    """Of an operation whose gradient is formed by reading δ once."""
    size = max(math.prod(arguments[name].shape), 1)
    return GroupShape(size, size, math.prod(output) / size)


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
        shape: Sizes to plan with.
    """

    parameters: tuple[str, ...]
    captures: tuple[str, ...]
    factor: GradientFactor
    applies: Callable[[Arguments], bool] = _always
    joint: bool = False
    positions: bool = False
    shape: ShapeOf = _matrix_shape

    @property
    def is_formed(self) -> bool:
        """Whether the gradient is formed by reading δ once: the parameter is no weight of a layer."""
        return self.shape is formed_shape

    def takes(self, name: str) -> bool:
        """Whether an argument of this name may be a parameter."""
        return _bare(name) in self.parameters

    def captured(self, arguments: Arguments) -> dict[str, Any]:
        """The arguments whose values it needs."""
        return {name: value for name, value in arguments.items() if _bare(name) in self.captures}


def _bare(name: str) -> str:
    """The argument's own name, of "tensors[0]" say."""
    return name.partition("[")[0]


_RULES: dict[Any, Rule] = {}
_FAMILIES: list[Callable[[Any], Rule | None]] = []


def rule_of(
    *operations: Any,
    parameters: tuple[str, ...],
    captures: tuple[str, ...],
    applies: Callable[[Arguments], bool] = _always,
    joint: bool = False,
    positions: bool = False,
    shape: ShapeOf = _matrix_shape,
) -> Callable[[GradientFactor], GradientFactor]:
    """Makes the function below it the rule of one or more operations.

    Args:
        operations: Operator overloads.
        parameters: As in :class:`Rule`, like all that follow.
        captures: As there.
        applies: As there.
        joint: As there.
        positions: As there.
        shape: As there.

    Raises:
        TypeError: If an operation is not an operator overload.
    """

    def register(factor: GradientFactor) -> GradientFactor:
        rule = Rule(parameters, captures, factor, applies, joint, positions, shape)
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


def add_family(rule: Callable[[Any], Rule | None]) -> None:
    """Rules for every operation of a kind that has none of its own.

    Args:
        rule: An operation's rule; ``None`` if it is not of the kind.
    """
    _FAMILIES.append(rule)


def find_rule(operation: Any) -> Rule | None:
    """The rule of an operation, if there is one."""
    if operation in _RULES:
        return _RULES[operation]
    return next(filter(None, (rule(operation) for rule in _FAMILIES)), None)
