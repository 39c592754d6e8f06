"""The arguments of operators: what torch's dispatcher hands over is tuples, lists and dicts of plain values.

``torch.utils._pytree`` knows of every container, and takes longer over an operator's arguments than the
operator itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from ntkscope.engines.torch.compat import pytree

__all__ = ["leaves_of", "map_tensors"]

_PLAIN = frozenset((int, float, bool, str, complex, type(None)))


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """The same arguments with every tensor changed.

    Args:
        change: What becomes of a tensor.
        value: Tensors, plain values, nodes, and tuples, lists and dicts of them.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return change(value)
    if kind is tuple:
        return tuple([map_tensors(change, part) for part in value])
    if kind is list:
        return [map_tensors(change, part) for part in value]
    if kind is dict:
        return {name: map_tensors(change, part) for name, part in value.items()}
    return pytree.tree_map_only(Tensor, change, value)


def leaves_of(value: Any) -> list[Any]:
    """All that is no container.

    >>> leaves_of(((1, [2.0]), {"dim": None}))
    [1, 2.0, None]
    """
    found: list[Any] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Any]) -> None:
    kind = type(value)
    if kind is tuple or kind is list:
        for part in value:
            _collect(part, found)
    elif kind is dict:
        for part in value.values():
            _collect(part, found)
    elif kind in _PLAIN or isinstance(value, (Tensor, fx.Node)):
        found.append(value)
    else:
        found += pytree.tree_leaves(value)
