"""The pieces of a state: the operations that compute it, behind those that only move numbers.

A recurrence stacks the outputs of its steps. Each step is a piece, and a gradient of its entries
alone is pulled back without passing through the later steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.graph.operators import is_move

__all__ = ["Piece", "jobs", "pieces_of"]


@dataclass(frozen=True)
class Piece:
    """A part of the state that one operation computes (a time step of a recurrence, say).

    Attributes:
        index: Position in the sample's flattened state of each entry that appears in it.
        entries: Which entries of the piece those are.
    """

    index: Tensor
    entries: Tensor


def pieces_of(graph: fx.Graph) -> tuple[list[Piece], list[fx.Node]]:
    """What the state is put together from: the pieces, and the nodes that compute them.

    Args:
        graph: A recorded graph, whose one output is the state.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    state = output.args[0]
    sources, moves = _sources(state)
    values: dict[fx.Node, Any] = {}
    start = 0
    for source in sources:
        shape = tuple(source.meta["val"].shape)
        size = torch.Size(shape).numel()
        values[source] = torch.arange(start, start + size).reshape(shape)
        start += size
    for node in graph.nodes:
        if node in moves:
            values[node] = node.target(*fx.map_arg(node.args, values.__getitem__), **node.kwargs)
    placed = values[state].reshape(-1)
    pieces: dict[fx.Node, Piece] = {}
    start = 0
    for source in sources:
        stop = start + values[source].numel()
        index = torch.nonzero((placed >= start) & (placed < stop)).reshape(-1)
        # Of a recurrence whose last step alone is watched, the other steps are no part.
        if len(index):
            pieces[source] = Piece(index, placed[index] - start)
        start = stop
    return list(pieces.values()), list(pieces)


def _sources(state: fx.Node) -> tuple[list[fx.Node], set[fx.Node]]:
    """The operations behind the moves that make up the state, and those moves."""
    sources: dict[fx.Node, None] = {}
    moves: set[fx.Node] = set()
    stack = [state]
    while stack:
        node = stack.pop()
        if node in moves or node in sources:
            continue
        if is_move(node):
            moves.add(node)
            stack.extend(reversed(node.all_input_nodes))
        else:
            sources[node] = None
    return list(sources), moves


def jobs(pieces: tuple[Piece, ...], probes: int) -> Iterator[list[tuple[int, Tensor]]]:
    """All entries of all pieces, so many at a time; the entries of one piece stay together if they fit."""
    job: list[tuple[int, Tensor]] = []
    room = probes
    for number, piece in enumerate(pieces):
        entries = piece.entries
        if len(entries) > room and job:
            yield job
            job, room = [], probes
        if len(entries) > probes:
            parts = -(-len(entries) // probes)
            for part in entries.chunk(parts):
                yield [(number, part)]
            continue
        if len(entries):
            job.append((number, entries))
            room -= len(entries)
    if job:
        yield job
