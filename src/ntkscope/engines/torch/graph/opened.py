"""Trace the state of one sample to a graph, and open it at every use of every parameter.

The graph's operations are ATen operators, so a use of a weight is an edge of the graph,
whatever the module class: tied weights, layers used twice and recurrences come out right
by construction. After each use that a rule knows, a tap (a zero) is added to the
operation's output; the gradient with respect to the tap is the δ that the rule needs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ntkscope.engines.torch.errors import no_structure
from ntkscope.engines.torch.graph.canonical import use_linear_maps
from ntkscope.engines.torch.graph.derived import Derivation, separate
from ntkscope.engines.torch.graph.operators import (
    casts,
    drop_dead,
    flat_arguments_of,
    name_of,
    on_meta,
    rearranges,
    splits,
)
from ntkscope.engines.torch.graph.pieces import Piece, pieces_of
from ntkscope.engines.torch.graph.recorder import Recording, record
from ntkscope.engines.torch.graph.running import Running
from ntkscope.engines.torch.rules import Rule, find_rule

__all__ = ["Graph", "Use", "trace"]


@dataclass(frozen=True)
class Use:
    """One operation that uses parameters by a known rule.

    Attributes:
        rule: Its rule.
        constants: Its arguments by name, tensors by their shapes alone.
        captured: Index among the captured values, by the name of the argument.
        tap_shape: Shape of its output for one sample.
        parameters: Name of the parameter, by the name of the argument.
        dtype: Of its output.
    """

    rule: Rule
    constants: dict[str, Any]
    captured: dict[str, int]
    tap_shape: tuple[int, ...]
    parameters: dict[str, str]
    dtype: torch.dtype


@dataclass(frozen=True)
class Graph:
    """The state of one sample, opened at the uses of its parameters.

    ``module(*parameters, *sample, *taps)`` returns (state, pieces, captured values).

    Attributes:
        graph: The operations; ``meta`` of a node holds the shape and dtype of its value for one sample.
        constants: The tensors that the graph reads, by name.
        names: The parameters, in order, and then the weights that are derived from others.
        general: Those with a use that no rule knows.
        blocks: Name of the parameter that each block of parameters is a view of.
        views: The operations that make each block of its parameter, in order.
        uses: The tapped uses.
        pieces: The parts of the state.
        why_general: For each of the general ones.
        own_backward: Names of the autograd functions with a backward of their own, on the state's way.
        derivation: How weights are derived from parameters, where they are.
    """

    graph: fx.Graph
    constants: nn.Module
    names: tuple[str, ...]
    general: tuple[str, ...]
    blocks: dict[str, str]
    uses: tuple[Use, ...]
    pieces: tuple[Piece, ...]
    why_general: dict[str, str] = field(default_factory=dict)
    views: dict[str, tuple[fx.Node, ...]] = field(default_factory=dict)
    own_backward: tuple[str, ...] = ()
    derivation: Derivation | None = None

    @functools.cached_property
    def module(self) -> Callable[..., tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """The graph as a callable."""
        return Running(self.graph, self.constants)

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Numbers in each parameter and derived weight."""
        holders = [node for node in self.graph.nodes if node.op == "placeholder"]
        return {name: math.prod(node.meta["shape"]) for name, node in zip(self.names, holders, strict=False)}

    def is_derived(self, block: str) -> bool:
        """Whether it is a weight that is derived from parameters."""
        return self.derivation is not None and block in self.derivation.weights

    def weights(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters by name, and the weights that are derived from them; gradients flow through."""
        return dict(parameters) | (self.derivation.of(parameters) if self.derivation else {})


def trace(function: Callable[..., Tensor], parameters: dict[str, Tensor], sample: Sequence[Tensor]) -> Graph:
    """Traces ``function(parameters, sample)`` and opens it at the uses of its parameters.

    Args:
        function: The state of one sample.
        parameters: The parameters by name.
        sample: The inputs of one sample.

    Raises:
        StructureError: If it cannot be traced.
    """
    names = given = tuple(parameters)

    def flat(*tensors: Tensor) -> Tensor:
        values = dict(zip(given, tensors[: len(given)], strict=True))
        return function(values, list(tensors[len(given) :]))

    # As leaves, so that what forward differentiates, and whose backward is its own, can be told.
    leaves = [value.detach().requires_grad_() for value in parameters.values()]
    with no_structure("the model cannot be traced"):
        recording = record(flat, [*leaves, *sample])
        names, derivation = separate(recording, names)
        opened = _Opening(recording, names, derivation.weights if derivation else ()).graph()
        return replace(opened, derivation=derivation)


class _Opening:
    """The surgery: which parameters are used how, and the taps."""

    def __init__(self, recording: Recording, names: tuple[str, ...], derived: Sequence[str]) -> None:
        self._recording = recording
        self._derived = frozenset(derived)
        self._graph = recording.graph
        self._names = names
        placeholders = [node for node in self._graph.nodes if node.op == "placeholder"]
        self._parameters = dict(zip(names, placeholders[: len(names)], strict=True))
        self._last_placeholder = placeholders[-1]
        self._why_general: dict[str, str] = {}

    def graph(self) -> Graph:
        """The opened graph."""
        plain = [node for name, node in self._parameters.items() if name not in self._derived]
        derived = [node for name, node in self._parameters.items() if name in self._derived]
        use_linear_maps(self._graph, plain, derived)
        blocks: dict[str, fx.Node] = {}
        owners: dict[str, str] = {}
        views: dict[str, tuple[fx.Node, ...]] = {}
        for name, node in self._parameters.items():
            own = self._blocks(name, node)
            reason = next(filter(None, (self._refusal(block) for block in own.values())), "")
            if reason:
                self._why_general[name] = reason
                continue
            blocks |= own
            owners |= dict.fromkeys(own, name)
            views |= {block: _steps(node, place) for block, place in own.items()}
        uses, captured = self._tap(blocks)
        pieces, piece_nodes = pieces_of(self._graph)
        output = next(node for node in self._graph.nodes if node.op == "output")
        state = output.args[0]
        output.args = ((state, tuple(piece_nodes), tuple(captured)),)
        drop_dead(self._graph)
        self._graph.lint()
        for node in self._graph.nodes:
            node.meta = _outline(node.meta.get("val"))
        general = tuple(name for name in self._names if name in self._why_general)
        return Graph(
            self._graph,
            self._recording.constants,
            self._names,
            general,
            owners,
            tuple(uses),
            tuple(pieces),
            self._why_general,
            views,
            self._recording.own_backward,
        )

    def _blocks(self, name: str, node: fx.Node) -> dict[str, fx.Node]:
        """The parameter in the views in which it is used, each entry in one of them."""
        _merge_equal_users(self._graph, node)
        users = list(node.users)
        if len(users) != 1:
            return {name: node}
        user = users[0]
        if rearranges(user) or casts(user):
            return self._blocks(name, user)
        if splits(user):
            for part in list(user.users):
                _merge_equal_users(self._graph, part)
            parts = {f"{name}[{part.args[1]}]": part for part in user.users}
            return {key: block for n, part in parts.items() for key, block in self._blocks(n, part).items()}
        return {name: node}

    def _refusal(self, block: fx.Node) -> str:
        """Why a block cannot be treated by rules; empty if it can."""
        for user in block.users:
            rule = find_rule(user.target) if user.op == "call_function" else None
            if rule is None or not _is_floating(user):
                return f"used by {name_of(user) or user.target}, which has no rule"
            arguments = flat_arguments_of(user)
            roles = [name for name, value in arguments.items() if value is block]
            if not roles or not all(rule.takes(role) for role in roles):
                return f"used as {', '.join(roles) or 'part of a list'} of {name_of(user)}"
            if not rule.applies({name: on_meta(value) for name, value in arguments.items()}):
                return f"used by {name_of(user)} in a way that its rule does not cover"
        return ""

    def _tap(self, blocks: dict[str, fx.Node]) -> tuple[list[Use], list[fx.Node]]:
        by_node = {node: name for name, node in blocks.items()}
        order = {node: index for index, node in enumerate(self._graph.nodes)}
        operations = sorted({user for node in by_node for user in node.users}, key=order.__getitem__)
        uses: list[Use] = []
        captured: dict[fx.Node, int] = {}
        for node in operations:
            rule = find_rule(node.target)
            assert rule is not None
            arguments = flat_arguments_of(node)
            parameters = {
                arg: by_node[v] for arg, v in arguments.items() if isinstance(v, fx.Node) and v in by_node
            }
            needed = rule.captured(arguments).items()
            wanted = {arg: value for arg, value in needed if isinstance(value, fx.Node)}
            places = {arg: captured.setdefault(value, len(captured)) for arg, value in wanted.items()}
            constants = {arg: on_meta(value) for arg, value in arguments.items()}
            value = node.meta["val"]
            uses.append(Use(rule, constants, places, tuple(value.shape), parameters, value.dtype))
            self._add_tap(node, len(uses) - 1)
        return uses, list(captured)

    def _add_tap(self, node: fx.Node, index: int) -> fx.Node:
        with self._graph.inserting_after(self._last_placeholder):
            tap = self._graph.placeholder(f"tap_{index}")
        tap.meta = dict(node.meta)
        self._last_placeholder = tap
        with self._graph.inserting_after(node):
            tapped = self._graph.call_function(torch.ops.aten.add.Tensor, (node, tap))
        tapped.meta = dict(node.meta)
        node.replace_all_uses_with(tapped, delete_user_cb=lambda user: user is not tapped)
        return tap


def _steps(parameter: fx.Node, block: fx.Node) -> tuple[fx.Node, ...]:
    """The operations that lead from a parameter to a block of it, but for casts."""
    steps: list[fx.Node] = []
    while block is not parameter:
        if not casts(block):
            steps.append(block)
        block = block.all_input_nodes[0]
    return tuple(reversed(steps))


def _merge_equal_users(graph: fx.Graph, node: fx.Node) -> None:
    """One view where the same view of a parameter is taken several times."""
    seen: dict[Any, fx.Node] = {}
    for user in list(node.users):
        if not (rearranges(user) or casts(user) or splits(user) or name_of(user) == "getitem"):
            continue
        key = (user.target, str(user.args), str(user.kwargs))
        first = seen.setdefault(key, user)
        if first is not user:
            user.replace_all_uses_with(first)
            graph.erase_node(user)


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _outline(value: Any) -> dict[str, Any]:
    """What is kept of a value; the value itself would keep its memory."""
    if isinstance(value, Tensor):
        return {"shape": tuple(value.shape), "dtype": value.dtype}
    return {"shape": None, "dtype": None}
