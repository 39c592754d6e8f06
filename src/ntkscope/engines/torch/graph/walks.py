"""Walks along a recorded graph."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

__all__ = ["leading_to"]


def leading_to(ends: Iterable[fx.Node]) -> set[fx.Node]:
    """The ends, and all that they depend on."""
    found: set[fx.Node] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
