"""What is computed of parameters alone again and again, computed once.

A parametrised weight is derived anew each time that a layer is called: in a recurrence as often as it has
steps.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

__all__ = ["merge_repeated"]


def merge_repeated(graph: fx.Graph, varied: Collection[fx.Node]) -> None:
    """One node in the place of all that do the same to the same.

    Args:
        graph: Of a recording: its operations write nothing in place, and draw nothing at random.
        varied: The nodes that inputs reach, which are left as they are.
    """
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in varied:
            continue
        # Numbers that are equal may be of different types, and be printed differently.
        key = (node.target, str(node.args), str(node.kwargs))
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
