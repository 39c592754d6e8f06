"""The recorded graph of some samples, run forward once and pulled back many times, factor by factor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Outer, add_uses, stack_features
from ntkscope.engines.torch.graph.opened import Graph, Use
from ntkscope.engines.torch.reverse.base import OutputGradients, Reverse
from ntkscope.engines.torch.rules import Arguments

__all__ = ["Group", "Linearization", "groups_of", "runs_of"]


@dataclass(frozen=True)
class Group:
    """Parameters whose gradient is computed as one factor: a block, or a weight with its bias."""

    blocks: tuple[str, ...]
    uses: tuple[tuple[int, tuple[str, ...]], ...]
    joint: bool
    stackable: bool = False

    @property
    def numbers(self) -> tuple[int, ...]:
        """The uses."""
        return tuple(number for number, _ in self.uses)


class Linearization:
    """The graph of some samples at fixed parameters, run forward once, ready for many backward passes."""

    def __init__(self, graph: Graph, groups: Sequence[Group], reverse: Reverse) -> None:
        self._graph = graph
        self._groups = groups
        self._reverse = reverse
        self._stacks: dict[Group, dict[str, Tensor]] = {}

    @property
    def state(self) -> Tensor:
        """The state, shape (B, *state of one sample)."""
        return self._reverse.state

    def pull(self, z: Tensor) -> list[Factor]:
        """The gradients J_bᵀz_b, one factor a parameter group: z has shape (k, B, *state of one sample)."""
        return self._factors(self._reverse.of_state(z.reshape(z.shape[0], *self.state.shape)))

    def pull_pieces(self, pieces: Sequence[tuple[int, Tensor]]) -> list[Factor]:
        """The gradients of single outputs, the same for every sample.

        Args:
            pieces: (number of the piece, its entries) for each piece; one probe an entry.
        """
        return self._factors(self._reverse.of_pieces(pieces))

    def _factors(self, gradients: OutputGradients) -> list[Factor]:
        factors: list[Factor] = [Direct(g.reshape(*g.shape[:2], -1)) for g in gradients.general]
        for group in self._groups:
            factor = self._factor(group, gradients)
            if factor is not None:
                factors.append(factor)
        return factors

    def _factor(self, group: Group, gradients: OutputGradients) -> Factor | None:
        present = [index for index, (number, _) in enumerate(group.uses) if number in gradients.uses]
        if not present:
            return None
        if group.stackable:
            return self._stacked(group, present, gradients)
        parts = []
        for index in present:
            number, roles = group.uses[index]
            use = self._graph.uses[number]
            captured = {name: self._reverse.captured[place] for name, place in use.captured.items()}
            if number in gradients.parts:
                axis, places = gradients.parts[number]
                captured = {
                    name: value.narrow(axis + 1, places.start, len(places))
                    for name, value in captured.items()
                }
            parts.append(_of_use(use, use.constants | captured, gradients.uses[number], roles))
        return add_uses(parts)

    def _stacked(self, group: Group, present: list[int], gradients: OutputGradients) -> Factor:
        """The gradient by several uses as by one, its positions along a new axis after the samples'."""
        uses = [self._graph.uses[number] for number in group.numbers]
        if group not in self._stacks:
            self._stacks[group] = {
                name: torch.stack([self._reverse.captured[use.captured[name]] for use in uses], dim=1)
                for name in uses[0].captured
            }
        # Early outputs of a recurrence are reached by the first uses alone.
        first = present == list(range(len(present)))
        chosen = torch.tensor(present)
        captured = {
            name: values[:, : len(present)] if first else values[:, chosen]
            for name, values in self._stacks[group].items()
        }
        run = gradients.runs.get(group.numbers)
        if run is None:
            run = torch.stack([gradients.uses[group.numbers[index]] for index in present])
        return _of_use(uses[0], uses[0].constants | captured, run.movedim(0, 2), group.uses[0][1])


def _of_use(use: Use, arguments: Arguments, delta: Tensor, roles: tuple[str, ...]) -> Factor:
    """The gradient of the parameters that have these roles in an operation."""
    each = [use.rule.factor(arguments, delta, role) for role in roles]
    outers = [factor for factor in each if isinstance(factor, Outer)]
    return stack_features(outers) if len(each) > 1 else each[0]


def groups_of(graph: Graph) -> list[Group]:
    """Blocks with the same joint uses (a weight and its bias) together, all others alone."""
    uses: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, use in enumerate(graph.uses):
        for role, block in use.parameters.items():
            uses[block].append((number, role))
    together: dict[Any, list[str]] = defaultdict(list)
    for block, own in uses.items():
        joint = all(graph.uses[number].rule.joint for number, _ in own)
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
        groups.append(Group(tuple(blocks), listed, isinstance(key, tuple), _stackable(graph, listed)))
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
