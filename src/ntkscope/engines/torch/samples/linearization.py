"""The recorded graph of some samples, run forward once and pulled back many times, factor by factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Outer, add_uses, stack_features
from ntkscope.engines.torch.gradients.sides import SampleSide
from ntkscope.engines.torch.graph.groups import Group
from ntkscope.engines.torch.graph.opened import Graph, Use
from ntkscope.engines.torch.reverse.base import OutputGradients, Reverse
from ntkscope.engines.torch.reverse.workspace import Workspace
from ntkscope.engines.torch.rules import Arguments
from ntkscope.engines.torch.samples.derived import DerivedWeights
from ntkscope.interrupts import heed_interrupt

__all__ = ["Gradient", "Linearization"]


@dataclass(frozen=True)
class Gradient:
    """The gradient of some parameters for every probe and sample: what to sum over is the reader's choice.

    Attributes:
        group: The parameters.
        factor: Their gradient, for k probes and B samples.
    """

    group: Group
    factor: Factor


class Linearization:
    """The graph of some samples at fixed parameters, run forward once, ready for many backward passes.

    Args:
        graph: The state of one sample.
        groups: Its parameters that rules know.
        reverse: The reverse passes.
        derived: The weights that are derived from parameters, where there are any.
    """

    def __init__(
        self,
        graph: Graph,
        groups: Sequence[Group],
        reverse: Reverse,
        derived: DerivedWeights | None = None,
    ) -> None:
        self._derived = derived
        self._graph = graph
        self._groups = groups
        self._reverse = reverse
        self._general = {name: Group((name,), uses=()) for name in graph.general}
        self._stacks: dict[Group, dict[str, Tensor]] = {}
        # By the number of a use at one position: the features of its parameters side by side.
        self._sides: dict[int, SampleSide] = {}

    @property
    def state(self) -> Tensor:
        """The state, shape (B, *state of one sample)."""
        return self._reverse.state

    def pull(self, z: Tensor, memory: Workspace | None = None) -> list[Gradient]:
        """The gradients J_bᵀz_b, one for each parameter group that is reached.

        Args:
            z: Shape (k, B, *state of one sample).
            memory: Where they may lie, until the next pass that is given the same.
        """
        heed_interrupt()
        return self._by_group(self._reverse.of_state(z.reshape(z.shape[0], *self.state.shape), memory))

    def pull_pieces(
        self, pieces: Sequence[tuple[int, Tensor]], memory: Workspace | None = None
    ) -> list[Gradient]:
        """The gradients of single outputs, the same for every sample.

        Args:
            pieces: (number of the piece, its entries) for each piece; one probe an entry.
            memory: As for :meth:`pull`.
        """
        heed_interrupt()
        return self._by_group(self._reverse.of_pieces(pieces, memory))

    def _by_group(self, gradients: OutputGradients) -> list[Gradient]:
        found = [
            Gradient(self._general[name], Direct(g.reshape(*g.shape[:2], -1)))
            for name, g in gradients.general.items()
        ]
        for group in self._groups:
            factor = self._factor(group, gradients)
            if factor is not None:
                found.append(Gradient(group, factor))
        return found if self._derived is None else _of_parameters(found, self._derived)

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
            known = self._sides.get(number) if number not in gradients.parts else None
            factor = _of_use(use, use.constants | captured, gradients.uses[number], roles, known)
            if known is None and len(roles) > 1 and isinstance(factor, Outer) and _is_short(factor):
                self._sides[number] = factor.sample_side
            parts.append(factor)
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


def _of_parameters(gradients: list[Gradient], derived: DerivedWeights) -> list[Gradient]:
    """With the gradients of the parameters in the place of those of the weights derived from them."""
    of_weights = {g.group.blocks[0]: g.factor for g in gradients if g.group.blocks[0] in derived.values}
    own = [gradient for gradient in gradients if gradient.group.blocks[0] not in derived.values]
    pulled = derived.pull(of_weights)
    return own + [Gradient(Group((name,), uses=()), factor) for name, factor in pulled.items()]


def _is_short(factor: Outer) -> bool:
    """Whether it has one position, so that its features take no more than a value of the forward pass."""
    return factor.probe_side.shape[3] == 1


def _of_use(
    use: Use, arguments: Arguments, delta: Tensor, roles: tuple[str, ...], side: SampleSide | None = None
) -> Factor:
    """The gradient of the parameters that have these roles in an operation.

    Args:
        use: The operation.
        arguments: Its arguments.
        delta: The gradient of its output.
        roles: Of the parameters, which are one factor.
        side: Their features side by side, where these are known.
    """
    if side is not None:
        first = use.rule.factor(arguments, delta, roles[0])
        assert isinstance(first, Outer)
        return Outer(first.probe_side, side)
    each = [use.rule.factor(arguments, delta, role) for role in roles]
    outers = [factor for factor in each if isinstance(factor, Outer)]
    return stack_features(outers) if len(each) > 1 else each[0]
