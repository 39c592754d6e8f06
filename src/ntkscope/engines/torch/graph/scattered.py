"""What was written slice by slice, as slices side by side: ``out[:, t] = h`` for every t is a stack.

Writes into parts are recorded one after the other, each with a result of its own. A part that is read
comes from the write that made it, and a row of writes that nothing reads in between is one ``cat``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ntkscope.engines.torch.graph.operators import arguments_of, drop_dead

__all__ = ["join_slices"]

aten = torch.ops.aten


def join_slices(graph: fx.Graph) -> None:
    """Simplifies the writes of a graph whose nodes have their values."""
    if not any(_is_write(node) for node in graph.nodes):
        return
    for node in list(graph.nodes):
        if node.target in (aten.select.int, aten.slice.Tensor):
            _read_at_its_source(graph, node)
    drop_dead(graph)
    for node in reversed(list(graph.nodes)):
        if _is_write(node) and not _is_inner(node):
            _join(graph, node)
    drop_dead(graph)


def _is_write(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.slice_scatter.default


def _is_inner(node: fx.Node) -> bool:
    """Whether the next write is all that reads it."""
    users = list(node.users)
    if len(users) != 1 or not _is_write(users[0]) or users[0].args[0] is not node:
        return False
    return users[0].args[1] is not node and users[0].args[2] == node.args[2]


def _place(node: fx.Node) -> tuple[int, range]:
    """Axis and positions of what is read or written."""
    arguments = arguments_of(node)
    source: Any = node.args[0]
    shape = source.meta["val"].shape
    axis = arguments["dim"] % len(shape)
    if "index" in arguments:
        index = arguments["index"] % shape[axis]
        return axis, range(index, index + 1)
    cut = slice(arguments["start"], arguments["end"], arguments["step"])
    return axis, range(shape[axis])[cut]


def _read_at_its_source(graph: fx.Graph, node: fx.Node) -> None:
    source: Any = node.args[0]
    axis, places = _place(node)
    if not len(places):
        return
    while _is_write(source):
        written_axis, written = _place(source)
        if written_axis != axis:
            break
        if not set(places) & set(written):
            source = source.args[0]
        elif written.step == 1 and places[0] in written and places[-1] in written:
            places = range(places[0] - written[0], places[-1] - written[0] + 1, places.step)
            source = source.args[1]
        else:
            break
    if source is node.args[0]:
        return
    shape = node.meta["val"].shape
    inner = source.args[0] if source.target is aten.reshape.default else source
    if (
        isinstance(inner, fx.Node)
        and inner.meta["val"].shape == shape
        and inner.meta["val"].numel() == (source.meta["val"].numel())
    ):
        node.replace_all_uses_with(inner)
        return
    with graph.inserting_before(node):
        if node.target is aten.select.int:
            made = graph.call_function(aten.select.int, (source, axis, places[0]))
        else:
            cut = (source, axis, places[0], places[-1] + 1, places.step)
            made = graph.call_function(aten.slice.Tensor, cut)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)


def _join(graph: fx.Graph, last: fx.Node) -> None:
    axis, _ = _place(last)
    writes = [last]
    while _is_write(writes[-1].args[0]) and _is_inner(writes[-1].args[0]):  # type: ignore[arg-type]
        writes.append(writes[-1].args[0])  # type: ignore[arg-type]
    if len(writes) == 1:
        return
    base: Any = writes[-1].args[0]
    writes.reverse()
    cuts = [_place(write)[1] for write in writes]
    with graph.inserting_before(last):
        if all(cut.step == 1 for cut in cuts):
            joined = _side_by_side(graph, base, writes, cuts, axis)
        elif _alternate(cuts, last.meta["val"].shape[axis]):
            parts = [write for _, write in sorted(zip((cut[0] for cut in cuts), writes, strict=True))]
            stacked = graph.call_function(aten.stack.default, ([part.args[1] for part in parts], axis + 1))
            stacked.meta["val"] = torch.stack([part.args[1].meta["val"] for part in parts], axis + 1).detach()  # type: ignore[union-attr]
            joined = graph.call_function(aten.reshape.default, (stacked, list(last.meta["val"].shape)))
        else:
            return
    joined.meta = dict(last.meta)
    last.replace_all_uses_with(joined)


def _alternate(cuts: list[range], size: int) -> bool:
    """Whether the slices take turns, each entry in one of them."""
    steps = {cut.step for cut in cuts}
    return steps == {len(cuts)} and sorted(place for cut in cuts for place in cut) == list(range(size))


def _side_by_side(
    graph: fx.Graph, base: fx.Node, writes: list[fx.Node], cuts: list[range], axis: int
) -> fx.Node:
    """Of every place what was written last."""
    owners = [-1] * base.meta["val"].shape[axis]
    for number, cut in enumerate(cuts):
        owners[cut.start : cut.stop] = [number] * len(cut)
    parts: list[fx.Node] = []
    start = 0
    for stop in range(1, len(owners) + 1):
        if stop < len(owners) and owners[stop] == owners[start]:
            continue
        owner = owners[start]
        source: Any = base if owner < 0 else writes[owner].args[1]
        offset = 0 if owner < 0 else cuts[owner].start
        if stop - start != source.meta["val"].shape[axis]:
            value = source.meta["val"].detach().narrow(axis, start - offset, stop - start)
            source = graph.call_function(aten.slice.Tensor, (source, axis, start - offset, stop - offset))
            source.meta["val"] = value
        parts.append(source)
        start = stop
    return parts[0] if len(parts) == 1 else graph.call_function(aten.cat.default, (parts, axis))
