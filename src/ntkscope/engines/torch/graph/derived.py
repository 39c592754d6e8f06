"""Weights that the model derives from its parameters: W = f(θ), where no input has a part in f.

A norm of weights, a mask, a quantisation or a merged low-rank update stand between a parameter and the
layer that uses it. They are taken out of the graph of a sample: the layer's weight W becomes an input of
that graph, for which the rules of layers hold, and f, which has no batch, a graph of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ntkscope.engines.torch.graph.operators import (
    arguments_of,
    casts,
    flat_arguments_of,
    name_of,
    on_meta,
    rearranges,
    splits,
)
from ntkscope.engines.torch.graph.recorder import Recording
from ntkscope.engines.torch.graph.repeated import merge_repeated
from ntkscope.engines.torch.graph.running import Running
from ntkscope.engines.torch.graph.walks import leading_to
from ntkscope.engines.torch.rules import find_rule
from ntkscope.engines.torch.rules.products import is_product

__all__ = ["Derivation", "separate"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Derivation:
    """How weights follow from parameters.

    Attributes:
        graph: The operations; its placeholders are the parameters, its output the tuple of the weights.
        constants: The tensors that the graph reads, by name.
        parameters: Names of the parameters.
        weights: Names of the weights, which are in the place of parameters in the graph of a sample.
    """

    graph: fx.Graph
    constants: nn.Module
    parameters: tuple[str, ...]
    weights: tuple[str, ...]

    @functools.cached_property
    def module(self) -> Callable[..., tuple[Tensor, ...]]:
        """The graph as a callable."""
        return Running(self.graph, self.constants)

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights by name, at these parameters; gradients flow through."""
        return dict(zip(self.weights, self.module(*(parameters[n] for n in self.parameters)), strict=True))


def separate(recording: Recording, names: Sequence[str]) -> tuple[tuple[str, ...], Derivation | None]:
    """Takes what derives weights from parameters out of a recording, whose graph is changed.

    A parameter that is used as it is, or transposed, reshaped or cast, stays; so does one that leads to
    nothing that is used as a weight, as that of a layer whose input is the same for all samples.

    Args:
        recording: Its first placeholders are the parameters.
        names: Their names.

    Returns:
        What stands for the first placeholders now, and how weights are derived, if any are.
    """
    search = _Search(recording.graph, names)
    if not search.weights():
        return tuple(names), None
    merge_repeated(recording.graph, search.varied)
    search = _Search(recording.graph, names)
    weights = search.weights()
    order = {node: index for index, node in enumerate(recording.graph.nodes)}
    weights = sorted(weights, key=order.__getitem__)
    used = search.parameters_of(weights)
    derivation = _derivation(search, weights, used, recording.constants)
    _put_in(recording.graph, search, dict(zip(derivation.weights, weights, strict=True)))
    gone = set(derivation.parameters)
    return (*(name for name in names if name not in gone), *derivation.weights), derivation


class _Search:
    """Which nodes no input reaches, and which of them are weights that parameters are derived into."""

    def __init__(self, graph: fx.Graph, names: Sequence[str]) -> None:
        nodes = list(graph.nodes)
        holders = [node for node in nodes if node.op == "placeholder"]
        self.placeholders = dict(zip(names, holders[: len(names)], strict=True))
        self.varied = set(holders[len(names) :])
        self._sources: dict[fx.Node, frozenset[str]] = {
            node: frozenset({name}) for name, node in self.placeholders.items()
        }
        for node in nodes:
            if any(source in self.varied for source in node.all_input_nodes):
                self.varied.add(node)
            elif node not in self._sources and node.op != "output":
                sources = (self._sources.get(source, frozenset()) for source in node.all_input_nodes)
                self._sources[node] = frozenset().union(*sources)

    def weights(self) -> list[fx.Node]:
        """The nodes to be taken for weights: all by which the parameters of one of them reach the samples."""
        derived = {name for name, node in self.placeholders.items() if not self._is_plain(node)}
        ends = [
            node
            for node, sources in self._sources.items()
            if sources & derived and any(map(self._reads_sample, node.users))
        ]
        chosen: frozenset[str] = frozenset().union(
            *(self._sources[node] for node in ends if self._is_weight(node))
        )
        while True:
            found = [
                node
                for node, sources in self._sources.items()
                if sources & chosen and any(map(self._reads_sample, node.users))
            ]
            wider = chosen.union(*(self._sources[node] for node in found))
            if wider == chosen:
                break
            chosen = wider
        values = [node.meta.get("val") for node in found]
        is_real = all(isinstance(value, Tensor) and not value.is_complex() for value in values)
        return found if is_real else []

    def parameters_of(self, nodes: Iterable[fx.Node]) -> list[str]:
        """The parameters that lead to some nodes, in order."""
        found: set[str] = set().union(*(self._sources[node] for node in nodes))
        return [name for name in self.placeholders if name in found]

    def names_of(self, node: fx.Node) -> list[str]:
        """The parameters that lead to a node, in order."""
        return self.parameters_of([node])

    def _reads_sample(self, user: fx.Node) -> bool:
        return user in self.varied or user.op == "output"

    def _is_plain(self, node: fx.Node) -> bool:
        """Whether a parameter is used in views of it alone, one after the other, by samples or by layers."""
        users = list(node.users)
        if all(self._reads_sample(user) or _is_fixed_layer(user, node) for user in users):
            return True
        views = {(user.target, str(user.args), str(user.kwargs)) for user in users}
        if not all(rearranges(user) or casts(user) or splits(user) or _is_part(user) for user in users):
            return False
        # The same view may be taken again and again.
        return (len(views) == 1 or splits(node)) and all(map(self._is_plain, users))

    def _is_weight(self, node: fx.Node) -> bool:
        """Whether a rule holds for its use in the place of a parameter, and it is no layer's output."""
        users = [user for user in node.users if user in self.varied]
        if any(_is_layer(user, node) for user in users):
            return True
        return any(_is_ruled(user, node) for user in users) and not self._is_output(node)

    def _is_output(self, node: fx.Node) -> bool:
        """Whether a layer that no input reaches leads to it: one of its positions is better told apart."""
        stack, seen = [node], {node}
        while stack:
            node = stack.pop()
            for source in node.all_input_nodes:
                if self._sources.get(source) and _is_fixed_layer(node, source):
                    return True
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return False


def _is_part(node: fx.Node) -> bool:
    return name_of(node) == "getitem" and splits(node.args[0])  # type: ignore[arg-type]


def _is_layer(user: fx.Node, weight: fx.Node) -> bool:
    """Whether it is one of a linear map, a table or a norm."""
    rule = find_rule(user.target) if user.op == "call_function" else None
    return rule is not None and not rule.is_formed and _is_ruled(user, weight)


def _is_fixed_layer(user: fx.Node, weight: fx.Node) -> bool:
    """Whether it is a weight's layer where no input reaches the other arguments: no product of weights."""
    if not _is_layer(user, weight):
        return False
    # What is multiplied from the right is in the place of a layer's weight.
    place = {"matmul": "other", "mm": "mat2"}.get(name_of(user), "")
    return not is_product(user.target) or flat_arguments_of(user).get(place) is weight


def _is_ruled(user: fx.Node, weight: fx.Node) -> bool:
    rule = find_rule(user.target) if user.op == "call_function" else None
    if rule is None:
        return False
    arguments = flat_arguments_of(user)
    roles = [name for name, value in arguments.items() if value is weight]
    if not roles or not all(rule.takes(role) for role in roles):
        return False
    return rule.applies({name: on_meta(value) for name, value in arguments.items()})


def _derivation(
    search: _Search, weights: Sequence[fx.Node], parameters: Sequence[str], constants: nn.Module
) -> Derivation:
    """The operations that lead to some nodes as a graph of their own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for index, name in enumerate(parameters):
        copies[search.placeholders[name]] = graph.placeholder(f"parameter_{index}")
    needed = leading_to(weights)
    for node in weights[0].graph.nodes:
        if node in needed and node not in copies:
            copies[node] = _copy(graph, node, copies)
    graph.output(tuple(copies[node] for node in weights))
    graph.lint()
    names: list[str] = []
    for node in weights:
        label = f"the weight derived from {', '.join(search.names_of(node))}"
        count = sum(name == label or name.startswith(f"{label} (") for name in names)
        names.append(f"{label} ({count + 1})" if count else label)
    return Derivation(graph, constants, tuple(parameters), tuple(names))


def _copy(graph: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
    if name_of(node) != "_weight_norm":
        copy = graph.node_copy(node, copies.__getitem__)
        copy.meta = {}
        return copy
    # Into parts whose derivatives are known: v · (g / ‖v‖).
    given = fx.map_arg(arguments_of(node), copies.__getitem__)
    length = graph.call_function(aten.norm_except_dim.default, (given["v"], 2, given["dim"]))
    factor = graph.call_function(aten.div.Tensor, (given["g"], length))
    return graph.call_function(aten.mul.Tensor, (given["v"], factor))


def _put_in(graph: fx.Graph, search: _Search, weights: Mapping[str, fx.Node]) -> None:
    """Placeholders for the weights after those of the parameters that stay."""
    last = list(search.placeholders.values())[-1]
    for index, node in enumerate(weights.values()):
        with graph.inserting_after(last):
            last = graph.placeholder(f"weight_{index}")
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last, delete_user_cb=search._reads_sample)
    gone = set(search.parameters_of(weights.values()))
    for node in reversed(list(graph.nodes)):
        is_gone = node.op == "placeholder" and any(search.placeholders[name] is node for name in gone)
        if not node.users and (is_gone or node.op not in ("placeholder", "output")):
            graph.erase_node(node)
