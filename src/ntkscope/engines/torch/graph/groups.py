"""Parameters whose gradients are computed together, and how large those are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ntkscope.engines.torch.graph.opened import Graph, Use
from ntkscope.engines.torch.graph.operators import view_of
from ntkscope.engines.torch.rules import GroupShape

__all__ = [
    "Group",
    "GroupShape",
    "gradient_flops",
    "group_shape",
    "groups_of",
    "largest_features",
    "largest_work",
    "runs_of",
    "shared_elements",
    "tap_elements",
    "tapped_parameters",
]


@dataclass(frozen=True)
class Group:
    """Parameters whose gradient is computed as one factor: a block, or a weight with its bias.

    Attributes:
        blocks: Their names.
        uses: (number, roles of the parameters) of each use; none for a parameter that takes the general way.
        stackable: Whether the uses are one operation at different positions.
    """

    blocks: tuple[str, ...]
    uses: tuple[tuple[int, tuple[str, ...]], ...]
    stackable: bool = False

    @property
    def numbers(self) -> tuple[int, ...]:
        """The uses."""
        return tuple(number for number, _ in self.uses)


def groups_of(graph: Graph) -> list[Group]:
    """Blocks with the same joint uses (a weight and its bias) together, all others alone."""
    uses: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, use in enumerate(graph.uses):
        for role, block in use.parameters.items():
            uses[block].append((number, role))
    together: dict[Any, list[str]] = defaultdict(list)
    for block, own in uses.items():
        joint = all(graph.uses[number].rule.joint for number, _ in own) and not graph.is_derived(block)
        numbers = tuple(number for number, _ in own)
        together[numbers if joint and len(set(numbers)) == len(numbers) else block].append(block)
    groups = []
    for key, blocks in together.items():
        own_uses: dict[int, list[str]] = defaultdict(list)
        if isinstance(key, tuple):
            for block in blocks:
                for number, role in uses[block]:
                    own_uses[number].append(role)
            listed = tuple((number, tuple(roles)) for number, roles in own_uses.items())
        else:
            listed = tuple((number, (role,)) for number, role in uses[key])
        groups.append(Group(tuple(blocks), listed, _stackable(graph, listed)))
    return groups


def _stackable(graph: Graph, uses: tuple[tuple[int, tuple[str, ...]], ...]) -> bool:
    """Whether the uses are the same operation on the same parameters, at different positions."""
    (first, roles), *others = uses
    one = graph.uses[first]

    def alike(number: int) -> bool:
        use = graph.uses[number]
        return (use.rule, use.tap_shape, use.parameters, use.constants.keys()) == (
            one.rule, one.tap_shape, one.parameters, one.constants.keys(),
        )  # fmt: skip

    return (
        bool(others) and one.rule.positions and all(alike(number) and own == roles for number, own in others)
    )


def runs_of(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """The uses of stackable groups, none in two of them: their gradients are wanted side by side."""
    runs: list[tuple[int, ...]] = []
    taken: set[int] = set()
    for group in groups:
        if group.stackable and not taken & set(group.numbers):
            runs.append(group.numbers)
            taken |= set(group.numbers)
    return runs


# Sizes, for one sample (and one probe).


def group_shape(graph: Graph, group: Group) -> GroupShape:
    """The shape of a group."""
    shapes = [_use_shape(graph.uses[number], roles[0]) for number, roles in group.uses]
    positions = sum(shape.positions * shape.outputs for shape in shapes)
    outputs = max(shape.outputs for shape in shapes)
    return GroupShape(outputs, max(shape.parameters for shape in shapes), positions / max(outputs, 1))


def _use_shape(use: Use, role: str) -> GroupShape:
    """Sizes of one use."""
    return use.rule.shape(use.constants, role, use.tap_shape)


def tap_elements(graph: Graph) -> int:
    """Numbers in the outputs of all uses."""
    return sum(math.prod(use.tap_shape) for use in graph.uses)


def largest_work(graph: Graph, groups: Sequence[Group]) -> int:
    """Numbers that are held while one group's gradient is worked on."""
    shapes = [group_shape(graph, group) for group in groups]
    return max(
        (int(min(size, positions**2) + positions * outputs) for outputs, size, positions in shapes), default=0
    )


def largest_features(graph: Graph, groups: Sequence[Group]) -> int:
    """Numbers in the features that a group needs: inputs, or patches of them."""
    shapes = [group_shape(graph, group) for group in groups]
    return int(max((2 * positions * size / outputs for outputs, size, positions in shapes), default=0))


def gradient_flops(graph: Graph, groups: Sequence[Group]) -> float:
    """Multiply-adds of the gradients' norms."""
    shapes = [group_shape(graph, group) for group in groups]
    return sum(min(positions * size, positions**2 * outputs) for outputs, size, positions in shapes)


def shared_elements(graph: Graph) -> int:
    """Numbers that layers compute which no sample reaches, and which have gradients for every sample."""
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    taps = len(holders) - len(graph.uses)
    of_sample, shared = set(holders[len(graph.names) : taps]), set(holders[taps:])
    total = 0
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if of_sample.intersection(node.all_input_nodes):
            of_sample.add(node)
        elif shared.intersection(node.all_input_nodes):
            shared.add(node)
            # A layer's output and the tap on it are one.
            is_tapped = any(user.args[-1] in holders[taps:] for user in node.users if user.args)
            total += 0 if is_tapped or view_of(node) else math.prod(node.meta["shape"] or (0,))
    return total


def tapped_parameters(graph: Graph) -> int:
    """Parameters in all tapped uses together: one that is used twice counts twice."""
    return sum(math.prod(use.constants[role].shape) for use in graph.uses for role in use.parameters)
