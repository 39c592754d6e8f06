"""What tells two states of a module apart, besides its parameters' and buffers' values."""

from __future__ import annotations

import collections
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["Outline", "outline_of"]

# Compared by their value.
_PLAIN = frozenset((bool, int, float, str, type(None)))
# What can hold no module, and so may be kept as it is where a module is not to be kept alive.
_HOLDS_NOTHING = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, bytes, complex)
_HIDDEN = ("_parameters", "_buffers")
# Containers within containers are looked into so far.
_DEPTH = 4


class Outline:
    """Names, plain values and objects in an order; two are equal if objects are the same ones.

    Args:
        items: What they are.
    """

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Outline)
            and len(self._items) == len(other._items)
            and all(map(_same, self._items, other._items))
        )

    __hash__ = None  # type: ignore[assignment]

    def without_owning(self) -> Outline | None:
        """The same, which keeps nothing alive; equal to none once an object is gone.

        Returns:
            ``None`` where an object can only be kept alive.
        """
        items = [_weakly(item) for item in self._items]
        return None if any(item is _LOST for item in items) else Outline(items)


_LOST = object()


class _Weak:
    """An object for as long as it lives."""

    __slots__ = ("get",)

    def __init__(self, value: Any) -> None:
        self.get = weakref.ref(value)


def outline_of(attributes: Sequence[Mapping[str, Any]], unless: Any = None) -> Outline:
    """The outline of some modules.

    Args:
        attributes: Of each module, by name.
        unless: The key of a forward hook that is left out.
    """
    items: list[Any] = []
    for own in attributes:
        items.append(len(own))
        for name, value in own.items():
            if name not in _HIDDEN:
                items.append(name)
                if name == "_forward_hooks" and unless in value:
                    value = {key: hook for key, hook in value.items() if key != unless}
                _collect(value, items, _DEPTH)
    return Outline(items)


def _collect(value: Any, items: list[Any], depth: int) -> None:
    """Adds what a value is made of: what is in containers, which are copied themselves."""
    if depth and isinstance(value, dict):
        items.append(len(value))
        for key, item in value.items():
            items.append(key if type(key) in _PLAIN else str(key))
            _collect(item, items, depth - 1)
    elif depth and isinstance(value, (list, tuple, collections.deque)):
        items.append(len(value))
        for item in value:
            _collect(item, items, depth - 1)
    elif isinstance(value, set):
        items.append(len(value))
        items += sorted(value, key=id)
    else:
        items.append(value)


def _same(first: Any, second: Any) -> bool:
    for one, other in ((first, second), (second, first)):
        if type(one) is _Weak:
            alive = one.get()
            return alive is not None and alive is other
    return first is second or (type(first) is type(second) and type(first) in _PLAIN and first == second)


def _weakly(item: Any) -> Any:
    if type(item) in _PLAIN or isinstance(item, _HOLDS_NOTHING):
        return item
    if type(item) is weakref.ref and item.__callback__ is None:
        return item
    try:
        return _Weak(item)
    except TypeError:
        return _LOST
