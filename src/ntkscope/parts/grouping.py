"""Which part every parameter belongs to: by layer, by a function of its name, or by patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ntkscope.engines.base import layer_of

__all__ = ["By", "Grouping", "group_parameters"]

#: ``"layer"``, ``"parameter"``, a function of a parameter's name, or glob patterns (by name, or in a list).
By: TypeAlias = "str | Callable[[str], str] | Mapping[str, str] | Sequence[str]"

#: Of what no pattern matches.
_REST = "rest"


@dataclass(frozen=True)
class Grouping:
    """Parts of the parameters.

    Attributes:
        names: Of the parts, in the order of their first parameters.
        parts: The number of the part of every parameter.
        words: What the parts are.
    """

    names: tuple[str, ...]
    parts: Mapping[str, int]
    words: str


def group_parameters(by: Any, parameters: Iterable[str]) -> Grouping:
    """Reads ``by``.

    Args:
        by: ``"layer"``: the module that holds a parameter. ``"parameter"``: each alone. A function of a
            parameter's name. Patterns, ``{"attention": "*.attn.*"}`` or ``["*.attn.*"]``: the first that
            matches counts, and the part ``"rest"`` has all others.
        parameters: Their names.

    Raises:
        ValueError: For another text, or a pattern that matches nothing.
        TypeError: For anything else, or a function that returns no text.

    >>> group_parameters("layer", ["0.weight", "0.bias", "2.weight", "scale"]).names
    ('0', '2', 'self')
    """
    parameters = list(parameters)
    name_of, words = _name_of(by, parameters)
    names: dict[str, int] = {}
    parts: dict[str, int] = {}
    for parameter in parameters:
        name = name_of(parameter)
        if not isinstance(name, str):
            raise TypeError(
                f"by= gave {name!r} for the parameter {parameter!r}, expected a name; return a str"
            )
        parts[parameter] = names.setdefault(name, len(names))
    return Grouping(tuple(names), parts, words)


def _name_of(by: Any, parameters: list[str]) -> tuple[Callable[[str], Any], str]:
    if by == "layer":
        return layer_of, "layer"
    if by == "parameter":
        return lambda parameter: parameter, "parameter"
    if isinstance(by, str):
        raise ValueError(
            f"unknown by={by!r}; choose 'layer', 'parameter', 'sample' or 'output', or pass a function of a "
            "parameter's name or patterns such as {'attention': '*.attn.*'}"
        )
    if callable(by):
        return by, "function"
    if isinstance(by, Mapping):
        patterns = dict(by)
    elif isinstance(by, Sequence):
        patterns = {pattern: pattern for pattern in by}
    else:
        raise TypeError(f"by must be a text, a function or patterns, found {type(by).__name__}")
    for pattern in patterns.values():
        if not fnmatch.filter(parameters, pattern):
            raise ValueError(f"no parameter matches {pattern!r}; the parameters are {_some(parameters)}")

    def first(parameter: str) -> str:
        matching = (name for name, pattern in patterns.items() if fnmatch.fnmatchcase(parameter, pattern))
        return next(matching, _REST)

    return first, "pattern"


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
