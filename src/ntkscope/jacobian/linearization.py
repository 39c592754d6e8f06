"""The recorded graph of some samples, run forward once and pulled back many times, factor by factor."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap

from ntkscope.jacobian.factors import (
    Direct,
    Factor,
    Outer,
    add_rows,
    concat_positions,
    stack_features,
)
from ntkscope.jacobian.graph import Graph, Use
from ntkscope.jacobian.rules import Arguments

if TYPE_CHECKING:
    from ntkscope.jacobian.persample import SampleJacobian

__all__ = ["Group", "Linearization", "groups_of"]


@dataclass(frozen=True)
class Group:
    """Parameters whose gradient is computed as one factor: a block, or a weight with its bias."""

    blocks: tuple[str, ...]
    uses: tuple[tuple[int, tuple[str, ...]], ...]
    joint: bool
    stackable: bool = False


class Linearization:
    """The graph of some samples at fixed parameters, run forward once, ready for many backward passes."""

    def __init__(self, owner: SampleJacobian, samples: range) -> None:
        self._owner = owner
        graph, function = owner.graph, owner.function
        size = len(samples)
        leaves = owner.axes.split(function.inputs, samples)
        values = [function.parameters[name] for name in graph.names]
        self._general = {
            name: function.parameters[name].expand(size, *function.parameters[name].shape).requires_grad_()
            for name in graph.general
        }
        zero = torch.zeros((), dtype=function.dtype, device=function.device)
        self._taps = [zero.expand(size, *use.tap_shape).requires_grad_() for use in graph.uses]
        inputs = [self._general.get(name, value) for name, value in zip(graph.names, values, strict=True)]
        axes = [0 if name in self._general else None for name in graph.names]
        axes += [0] * (len(leaves) + len(self._taps))
        with torch.enable_grad(), function.operations():
            state, pieces, captured = vmap(graph.module, in_dims=tuple(axes))(*inputs, *leaves, *self._taps)
        self.state: Tensor = state
        self._pieces: tuple[Tensor, ...] = pieces
        self._captured = [value.detach() for value in captured]
        self._stacks: dict[Group, dict[str, Tensor]] = {}

    def pull(self, z: Tensor) -> list[Factor]:
        """The gradients J_bᵀz_b, one factor a parameter group: z has shape (k, B, *state of one sample)."""
        return self._pull([self.state], [z.reshape(z.shape[0], *self.state.shape)])

    def pull_pieces(self, pieces: list[tuple[int, Tensor]]) -> list[Factor]:
        """The gradients of single outputs, the same for every sample.

        Args:
            pieces: (number of the piece, its entries) for each piece; one probe an entry.
        """
        count = sum(len(entries) for _, entries in pieces)
        targets, probes = [], []
        start = 0
        for number, entries in pieces:
            target = self._pieces[number]
            probe = target.new_zeros(count, math.prod(target.shape[1:]))
            probe[torch.arange(start, start + len(entries)), entries] = 1
            start += len(entries)
            if target.requires_grad:
                targets.append(target)
                shape = (count, 1, *target.shape[1:])
                probes.append(probe.reshape(shape).expand(count, *target.shape))
        return self._pull(targets, probes)

    def _pull(self, targets: list[Tensor], probes: list[Tensor]) -> list[Factor]:
        leaves = [*self._taps, *self._general.values()]
        if not targets or not leaves or not any(target.requires_grad for target in targets):
            return []
        # One probe alone needs no batch, whose overhead is felt where operations are small.
        batched = len(probes[0]) > 1
        with self._owner.function.operations():
            gradients = torch.autograd.grad(
                targets,
                leaves,
                probes if batched else [probe[0] for probe in probes],
                is_grads_batched=batched,
                retain_graph=True,
                allow_unused=True,
            )
        if not batched:
            gradients = tuple(None if g is None else g.unsqueeze(0) for g in gradients)
        deltas, general = gradients[: len(self._taps)], gradients[len(self._taps) :]
        factors: list[Factor] = [Direct(g.reshape(*g.shape[:2], -1)) for g in general if g is not None]
        for group in self._owner.groups:
            factor = self._factor(group, deltas)
            if factor is not None:
                factors.append(factor)
        return factors

    def _factor(self, group: Group, deltas: tuple[Tensor | None, ...]) -> Factor | None:
        present = [index for index, (number, _) in enumerate(group.uses) if deltas[number] is not None]
        if not present:
            return None
        if group.stackable:
            return self._stacked(group, present, deltas)
        parts = []
        for index in present:
            number, roles = group.uses[index]
            use, delta = self._owner.graph.uses[number], deltas[number]
            assert delta is not None
            captured = {name: self._captured[place] for name, place in use.captured.items()}
            parts.append(_of_use(use, use.constants | captured, delta, roles))
        outer = [part for part in parts if isinstance(part, Outer)]
        if len(outer) == len(parts) and len({part.layout for part in outer}) == 1:
            return concat_positions(outer)
        return add_rows(parts)

    def _stacked(self, group: Group, present: list[int], deltas: tuple[Tensor | None, ...]) -> Factor:
        """The gradient by several uses as by one, its positions along a new axis after the samples'."""
        uses = [self._owner.graph.uses[number] for number, _ in group.uses]
        if group not in self._stacks:
            self._stacks[group] = {
                name: torch.stack([self._captured[use.captured[name]] for use in uses], dim=1)
                for name in uses[0].captured
            }
        # Early outputs of a recurrence are reached by the first uses alone.
        first = present == list(range(len(present)))
        chosen = torch.tensor(present)
        captured = {
            name: values[:, : len(present)] if first else values[:, chosen]
            for name, values in self._stacks[group].items()
        }
        delta = torch.stack(
            [d for index in present if (d := deltas[group.uses[index][0]]) is not None], dim=2
        )
        return _of_use(uses[0], uses[0].constants | captured, delta, group.uses[0][1])


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
