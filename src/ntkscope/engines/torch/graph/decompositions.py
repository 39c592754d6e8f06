"""Operations that are recorded as several others, for which there are rules."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.compat import OpOverload, schema_of

__all__ = ["bags_of_equal_length", "fill_in_values", "record_bags"]

aten = torch.ops.aten

_SUM, _MEAN, _MAX = 0, 1, 2


def bags_of_equal_length(func: Any, arguments: Mapping[str, Any]) -> int | None:
    """How many words each bag of an ``embedding_bag`` has, where all have as many.

    Args:
        func: The operation.
        arguments: Its arguments by name, tensors as they are. The caller sees to it that the offsets are the
            same for every sample.

    Returns:
        ``None`` if it is another operation, or cannot be told as what follows an embedding.
    """
    if not isinstance(func, OpOverload) or schema_of(func).name != "aten::embedding_bag":
        return None
    if arguments["scale_grad_by_freq"]:
        return None
    if arguments["mode"] == _MAX and arguments.get("padding_idx") is not None:
        return None
    offsets, words = arguments["offsets"], arguments["indices"].numel()
    starts = offsets[:-1] if arguments["include_last_offset"] else offsets
    bags = starts.numel()
    if arguments["indices"].dim() != 1 or not bags or not words or words % bags:
        return None
    length = words // bags
    equal = torch.equal(starts.cpu(), torch.arange(0, words, length, dtype=starts.dtype))
    closed = not arguments["include_last_offset"] or int(offsets[-1]) == words
    return length if equal and closed else None


def record_bags(graph: fx.Graph, nodes: Mapping[str, Any], weight: Tensor, length: int) -> fx.Node:
    """The sums, means or largest entries of bags as an embedding and what is made of it.

    Args:
        graph: Where to record.
        nodes: The operation's arguments by name, nodes for tensors.
        weight: The table.
        length: Words in each bag.
    """
    indices = graph.call_function(aten.reshape.default, (nodes["indices"], [-1, length]))
    padding = nodes.get("padding_idx")
    if padding is not None and padding < 0:
        padding += weight.shape[0]
    given = (nodes["weight"], indices) if padding is None else (nodes["weight"], indices, padding)
    words = graph.call_function(aten.embedding.default, given)
    if nodes["per_sample_weights"] is not None:
        factors = graph.call_function(aten.reshape.default, (nodes["per_sample_weights"], [-1, length, 1]))
        words = graph.call_function(aten.mul.Tensor, (words, factors))
    if nodes["mode"] == _MAX:
        return graph.call_function(operator.getitem, (graph.call_function(aten.max.dim, (words, 1)), 0))
    if padding is None:
        reduced = aten.mean.dim if nodes["mode"] == _MEAN else aten.sum.dim_IntList
        return graph.call_function(reduced, (words, [1]))
    # A padded word counts for nothing.
    present = graph.call_function(aten.ne.Scalar, (indices, padding))
    mask = graph.call_function(aten.to.dtype, (present, weight.dtype))
    column = graph.call_function(aten.unsqueeze.default, (mask, 2))
    kept = graph.call_function(aten.mul.Tensor, (words, column))
    total = graph.call_function(aten.sum.dim_IntList, (kept, [1]))
    if nodes["mode"] == _SUM:
        return total
    count = graph.call_function(aten.sum.dim_IntList, (column, [1]))
    at_least = graph.call_function(aten.clamp_min.default, (count, 1))
    return graph.call_function(aten.div.Tensor, (total, at_least))


def fill_in_values(nodes: Sequence[fx.Node]) -> None:
    """The values of nodes that were made without being run."""
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        with torch.no_grad():
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
