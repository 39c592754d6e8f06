"""Reference pages without raw roles (``:meth:``) and without constants' names as defaults."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import griffe

_ROLE = re.compile(r":(?:meth|class|func|attr|data|mod|exc):`(~?)([\w.]+)`")


class ReadableReference(griffe.Extension):
    """Turns roles into links and names of constants into their values, once the package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for obj in _all(pkg):
            if obj.docstring is not None:
                obj.docstring.value = _ROLE.sub(lambda match, obj=obj: _link(match, obj), obj.docstring.value)
            if isinstance(obj, griffe.Function):
                for parameter in obj.parameters:
                    parameter.default = _value_of(parameter.default, obj)
            elif isinstance(obj, griffe.Attribute) and isinstance(obj.parent, griffe.Class):
                obj.value = _value_of(obj.value, obj)


def _all(obj: griffe.Object) -> Iterator[griffe.Object]:
    """An object and all that is defined in it."""
    yield obj
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            yield from _all(member)


def _link(match: re.Match[str], obj: griffe.Object) -> str:
    """A link where the pages show what is meant, else its name alone."""
    short, name = match.groups()
    shown = name.rpartition(".")[2] if short else name.removeprefix("ntkscope.")
    path = name if name.startswith("ntkscope") else _resolve(name, obj)
    return f'<autoref identifier="{html.escape(path)}" optional><code>{html.escape(shown)}</code></autoref>'


def _resolve(name: str, obj: griffe.Object) -> str:
    """The path of a name, looked up where the docstring stands, then outwards."""
    first, *rest = name.split(".")
    scope: Any = obj
    while scope is not None:
        if first in scope.members:
            found = scope.members[first]
            path = found.target_path if found.is_alias else found.path
            return ".".join([path, *rest])
        scope = scope.parent
    return name


def _value_of(default: Any, obj: griffe.Object) -> Any:
    """What a constant's name stands for; anything else as it is."""
    name = default.name if isinstance(default, griffe.ExprName) else default
    if not isinstance(name, str) or not re.fullmatch(r"_?[A-Z][A-Z_]+", name):
        return default
    found = obj.module.members.get(name)
    if found is not None and found.is_alias:
        try:
            found = found.final_target
        except (griffe.AliasResolutionError, griffe.CyclicAliasError):
            return default
    value = getattr(found, "value", None)
    return default if value is None else value
