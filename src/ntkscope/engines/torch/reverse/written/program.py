"""The reverse pass of a graph, written out once and run for many probes.

Autograd would pull probes back through every operation, batched by vmap. Where a graph
is made of linear maps, pointwise operations and moves, its reverse pass is a short list
of matrix products and multiplications by slopes (see ``pointwise.py``), on
gradients whose first two axes are probes and samples. A recurrence gains most: its
operations are small and many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx

from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.graph.operators import (
    View,
    is_pointwise,
    name_of,
    unbound_axis,
    view_of,
)
from ntkscope.engines.torch.graph.running import Running
from ntkscope.engines.torch.graph.walks import leading_to
from ntkscope.engines.torch.reverse.written.layout import Layout, Reach, SplitOutput
from ntkscope.engines.torch.reverse.written.pointwise import (
    FusedPointwise,
    fuse_pointwise,
    group_identical,
)
from ntkscope.engines.torch.reverse.written.steps import (
    ConcatAdjoint,
    FunctionAdjoint,
    MatmulAdjoint,
    OperationAdjoint,
    PointwiseAdjoint,
    ReverseStep,
    ViewAdjoint,
)
from ntkscope.engines.torch.reverse.written.transposes import adjoint_of, joined_slices

__all__ = ["Program"]


class _UnknownError(Exception):
    """An operation has no written-out reverse pass."""


class Program:
    """The steps of a graph's reverse pass, and what they need from its forward pass.

    Args:
        graph: The state of one sample, opened at the uses of its parameters.
        runs: Numbers of uses whose gradients are wanted side by side; none is in two runs.

    Attributes:
        module: ``(*parameters, *sample)`` ↦ (state, captured values, needed values).
        names: The parameters, in order.
        state: The node of the state.
        pieces: The nodes of its pieces.
        layout: Which gradients share memory.
    """

    def __init__(self, graph: Graph, runs: Sequence[tuple[int, ...]]) -> None:
        nodes = list(graph.graph.nodes)
        holders = [node for node in nodes if node.op == "placeholder"]
        taps = holders[len(holders) - len(graph.uses) :]
        samples = holders[len(graph.names) : len(holders) - len(taps)]
        self.names = graph.names
        tapped = [next(iter(tap.users), None) for tap in taps]
        self._tapped = {node for node in tapped if node is not None}
        self.state, self.pieces, self._captured = nodes[-1].args[0]
        self._varied = _reached_from(nodes, [*samples, *taps])
        differentiable = [node for node in nodes if name_of(node) != "detach"]
        among = _reached_from(differentiable, taps) & leading_to([self.state, *self.pieces])
        self.live = [node for node in nodes if node in among and node.op == "call_function"]
        self._among = set(self.live)
        self._views: dict[fx.Node, View] = {}
        self._reached: dict[tuple[fx.Node, ...], Reach] = {}
        self.fused = self._fuse()
        self._adjoints = self._find_adjoints()
        self._identical = group_identical(self.fused.values(), self._among)
        split_outputs = self._find_split_outputs(graph, tapped)
        self.layout = Layout(tapped, self._views, split_outputs, tuple(runs))
        needed = dict.fromkeys(value for adjoint in self._adjoints.values() for value in adjoint.needs)
        self._needed = tuple(needed)
        results = (self.state, tuple(self._captured), self._needed)
        self.module = Running(graph.graph, graph.constants, results, zeros=taps)

    @classmethod
    def of(cls, graph: Graph, runs: Sequence[tuple[int, ...]]) -> Program | None:
        """The program of a graph, or ``None`` where it has operations that only autograd knows."""
        if graph.general or not graph.uses:
            return None
        try:
            return cls(graph, runs)
        except _UnknownError:
            return None

    def _fuse(self) -> dict[fx.Node, FusedPointwise]:
        ends = {self.state, *self.pieces}
        return fuse_pointwise([n for n in self.live if is_pointwise(n) and n not in self._tapped], ends)

    def _find_adjoints(self) -> dict[fx.Node, OperationAdjoint]:
        """The step of every operation that needs one, by the node whose gradient it reads."""
        skipped = {node for one in self.fused.values() for node in one.members}
        skipped |= {node.args[0] for node in self._tapped}
        adjoints: dict[fx.Node, OperationAdjoint] = {}
        for node in self.live:
            if node in self.fused:
                adjoints[node] = PointwiseAdjoint(self.fused[node], self._among)
            elif node in self._tapped:
                if node.args[0] in self._among:
                    adjoints[node] = self._adjoint(node.args[0])
            elif node not in skipped:
                adjoints[node] = self._adjoint(node)
            if node not in skipped and node.meta["dtype"] not in (None, self.state.meta["dtype"]):
                raise _UnknownError(f"{node} has another dtype than the state")
        return adjoints

    def _find_split_outputs(self, graph: Graph, tapped: Sequence[fx.Node | None]) -> dict[int, SplitOutput]:
        """Uses whose output does nothing but fall into parts, and whose input no gradient is pulled to."""
        found = {}
        for number, node in enumerate(tapped):
            users = [] if node is None else list(node.users)
            if node is None or node not in self._among or node in self._adjoints or len(users) != 1:
                continue
            axis = unbound_axis(users[0])
            # Positions may be left out, features may not.
            if axis is not None and graph.uses[number].rule.positions and axis < len(node.meta["shape"]) - 1:
                parts: dict[Any, fx.Node] = {
                    part.args[1]: part for part in users[0].users if part in self._among
                }
                found[number] = SplitOutput(users[0], axis, parts)
        return found

    def _adjoint(self, node: fx.Node) -> OperationAdjoint:
        view = view_of(node)
        if view is not None:
            self._views[node] = view
            return ViewAdjoint()
        slices = joined_slices(node)
        if slices is not None:
            return ConcatAdjoint([(part, cut) for part, cut in slices if part in self._among])
        adjoint = adjoint_of(node)
        if adjoint is not None:
            return FunctionAdjoint(node.all_input_nodes[0], adjoint)
        if name_of(node) in ("linear", "matmul", "mm"):
            x: Any = node.args[0]
            weight: Any = node.args[1]
            turned = name_of(node) != "linear"
            # A vector times a matrix has no rows to be flattened.
            is_plain = len(weight.meta["shape"]) == 2 and len(x.meta["shape"]) > int(turned)
            if is_plain and weight not in self._varied:
                return MatmulAdjoint(x, weight, turned)
        raise _UnknownError(f"{node.target} has no written-out reverse pass")

    def reach(self, starts: tuple[fx.Node, ...]) -> Reach:
        """What gradients of ``starts`` pass through."""
        if starts not in self._reached:
            self._reached[starts] = self._find_reach(starts)
        return self._reached[starts]

    def _find_reach(self, starts: tuple[fx.Node, ...]) -> Reach:
        seen = set(starts) & self._among
        order = []
        for node in reversed(self.live):
            if node in seen:
                order.append(node)
                seen.update(n for n in node.all_input_nodes if n in self._among)
        uses = tuple(number for number, node in enumerate(self.layout.tapped) if node in seen)
        parts = {}
        for use, split in self.layout.split_outputs.items():
            found = [index for index, part in split.parts.items() if part in seen]
            if found:
                parts[use] = range(min(found), max(found) + 1)
        return Reach(tuple(order), uses, parts)

    def bind(self, needed: Sequence[Tensor]) -> dict[fx.Node, ReverseStep | None]:
        """The steps at some values, by the nodes whose gradient they read.

        Args:
            needed: The needed values as the module returns them, with the samples first.
        """
        values = dict(zip(self._needed, needed, strict=True))
        slopes = {
            output: found for group in self._identical for output, found in group.slopes(values).items()
        }
        return {node: adjoint.bind(node, values, slopes) for node, adjoint in self._adjoints.items()}


def _reached_from(nodes: Iterable[fx.Node], starts: Iterable[fx.Node]) -> set[fx.Node]:
    """The starts, and those of the nodes that depend on them."""
    found = set(starts)
    for node in nodes:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found
