"""Pointwise parts of a graph as single steps: y = f(x₁, x₂, ...), entry by entry.

A gate of a recurrence is a dozen small operations. Its Jacobian is diagonal, so that one
multiplication by the slopes ∂y/∂x pulls a gradient back through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.func import vmap

from ntkscope.engines.torch.graph.running import Running

__all__ = ["FusedPointwise", "IdenticalPointwise", "Slope", "fuse_pointwise", "group_identical"]

#: ∂y/∂x for every sample, shape (B, *y); a number where it is the same everywhere; ``None`` for 0.
Slope: TypeAlias = Tensor | float | None


@dataclass(frozen=True, eq=False)
class FusedPointwise:
    """Pointwise operations whose results are used by one another alone, but for the last one's.

    Attributes:
        output: The last operation.
        inputs: What enters from outside.
        members: The operations in order.
    """

    output: fx.Node
    inputs: tuple[fx.Node, ...]
    members: tuple[fx.Node, ...]

    def pattern(self) -> tuple[Any, ...]:
        """What makes two of them the same function: operations and shapes, without the nodes' names."""
        places = {node: index for index, node in enumerate((*self.inputs, *self.members))}
        steps = tuple(
            (node.target, repr(fx.map_arg((node.args, node.kwargs), lambda n: f"%{places[n]}")))
            for node in self.members
        )
        shapes = tuple((node.meta["shape"], node.meta["dtype"]) for node in (*self.inputs, self.output))
        return (steps, shapes)

    def function(self) -> Callable[..., Tensor]:
        """The output from the inputs, of one sample."""
        graph = fx.Graph()
        copies = {node: graph.placeholder(f"x{index}") for index, node in enumerate(self.inputs)}
        for node in self.members:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[self.output])
        return Running(graph, torch.nn.Module())


def fuse_pointwise(pointwise: Sequence[fx.Node], ends: set[fx.Node]) -> dict[fx.Node, FusedPointwise]:
    """The pointwise operations of a graph fused to as few as can be, by their outputs.

    Args:
        pointwise: The operations, in order.
        ends: Those whose own gradient is wanted: they may only be outputs.
    """
    owner: dict[fx.Node, fx.Node] = {}
    for node in reversed(pointwise):
        owners = {owner.get(user) for user in node.users if user.op != "output"}
        shared = owners.pop() if len(owners) == 1 and node not in ends else None
        owner[node] = shared or node
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in pointwise:
        members.setdefault(owner[node], []).append(node)
    return {output: _fused(output, inside) for output, inside in members.items()}


def _fused(output: fx.Node, members: list[fx.Node]) -> FusedPointwise:
    inside = set(members)
    inputs = dict.fromkeys(n for node in members for n in node.all_input_nodes if n not in inside)
    return FusedPointwise(output, tuple(inputs), tuple(members))


@dataclass(frozen=True, eq=False)
class IdenticalPointwise:
    """Fused operations that are the same function, such as the steps of a recurrence.

    Attributes:
        copies: The operations.
        moving: Which of their inputs gradients reach.
        function: The output from the inputs, of one sample.
    """

    copies: tuple[FusedPointwise, ...]
    moving: tuple[bool, ...]
    function: Callable[..., Tensor]

    def slopes(self, values: Mapping[fx.Node, Tensor]) -> dict[fx.Node, tuple[Slope, ...]]:
        """∂y/∂x of every operation for each of its inputs, by its output; all at once.

        Args:
            values: Of all inputs, with the samples first: (B, *shape).
        """
        count = len(self.copies)
        stacked = [
            torch.stack([values[one.inputs[place]] for one in self.copies])
            for place in range(len(self.moving))
        ]
        columns = [
            [None] * count if slope is None else _constants(slope) for slope in self._differentiate(stacked)
        ]
        return {one.output: tuple(c[index] for c in columns) for index, one in enumerate(self.copies)}

    def _differentiate(self, inputs: list[Tensor]) -> list[Tensor | None]:
        """∂y/∂x for every input of shape (R, B, *shape), itself of shape (R, B, *shape of y)."""
        shape = self.copies[0].output.meta["shape"]
        leaves = []
        for x, moves in zip(inputs, self.moving, strict=True):
            flat = x.flatten(0, 1)
            if moves:
                # An input that is broadcast has a slope for each of its copies.
                full = flat.reshape(len(flat), *[1] * (len(shape) - flat.dim() + 1), *flat.shape[1:])
                flat = full.expand(len(flat), *shape).clone().requires_grad_()
            leaves.append(flat)
        wanted = [leaf for leaf, moves in zip(leaves, self.moving, strict=True) if moves]
        if not wanted:
            return [None] * len(inputs)
        with torch.enable_grad():
            y = vmap(self.function)(*leaves)
            gradients = iter(torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True))
        found = [next(gradients) if moves else None for moves in self.moving]
        return [None if slope is None else slope.unflatten(0, inputs[0].shape[:2]) for slope in found]


def group_identical(fused: Iterable[FusedPointwise], live: set[fx.Node]) -> list[IdenticalPointwise]:
    """The operations in groups of the same function.

    Args:
        fused: The operations.
        live: The nodes that gradients reach; the slopes of other inputs are not found.
    """
    groups: dict[Any, list[FusedPointwise]] = {}
    for one in fused:
        smooth = one.output.meta["dtype"].is_floating_point
        moving = tuple(smooth and n in live and n.meta["dtype"].is_floating_point for n in one.inputs)
        groups.setdefault((one.pattern(), moving), []).append(one)
    return [
        IdenticalPointwise(tuple(same), moving, same[0].function()) for (_, moving), same in groups.items()
    ]


def _constants(slopes: Tensor) -> list[Slope]:
    """The slopes of each copy, as numbers where they are the same everywhere (1 of a sum, say)."""
    if not slopes.numel():
        return list(slopes)
    first = slopes.flatten(1)[:, :1]
    same = (slopes.flatten(1) == first).all(1).tolist()
    numbers = first[:, 0].tolist()
    return [
        number if constant else slope for slope, constant, number in zip(slopes, same, numbers, strict=True)
    ]
