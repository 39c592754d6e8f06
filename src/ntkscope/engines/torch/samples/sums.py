"""The gradient of the whole batch from the gradients of its samples, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.graph.groups import Group, group_shape
from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.samples.linearization import Gradient

__all__ = ["BatchGradient", "positions_of"]


def positions_of(graph: Graph, groups: Sequence[Group]) -> dict[str, float]:
    """At how many positions of a sample each parameter is used, and so how many terms its gradient sums.

    Args:
        graph: The state of one sample.
        groups: Its parameters that rules know.
    """
    found: dict[str, float] = {}
    for group in groups:
        positions = group_shape(graph, group).positions
        for block in group.blocks:
            owner = graph.blocks.get(block, block)
            found[owner] = max(found.get(owner, 1.0), positions)
    # What no rule knows may be used wherever something else is.
    most = max(found.values(), default=1.0)
    own = {name: found.get(name, most) for name in graph.names if not graph.is_derived(name)}
    return own | dict.fromkeys(graph.derivation.parameters if graph.derivation else (), most)


class BatchGradient:
    """Σ_b J_bᵀz_b for one probe, in float64 where several are added.

    Args:
        graph: Whose gradients are added.
        parameters: Their values.
    """

    def __init__(self, graph: Graph, parameters: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._parameters = parameters
        self._sums: dict[Group, Tensor] = {}

    def add(self, gradients: Sequence[Gradient]) -> None:
        """Adds the gradients of some samples."""
        for gradient in gradients:
            own = gradient.factor.summed()[0]
            total = self._sums.get(gradient.group)
            self._sums[gradient.group] = own if total is None else total.double() + own

    def by_parameter(self) -> dict[str, Tensor]:
        """The gradient of every parameter, flat; zero where nothing leads to it."""
        found: dict[str, Tensor] = {}
        for group, total in self._sums.items():
            for block, gradient in self._blocks(group, total):
                owner = self._graph.blocks.get(block, block)
                steps = self._graph.views.get(block, ())
                if not steps:
                    # The sums stay as they are: more samples may be added to them.
                    known = found.get(owner)
                    found[owner] = (
                        gradient if known is None else known.to(torch.float64, copy=True).add_(gradient)
                    )
                    continue
                size = self._parameters[owner].numel()
                whole = torch.zeros(size, dtype=torch.float64, device=gradient.device)
                whole[self._places(owner, steps)] += gradient.double()
                found[owner] = found[owner] + whole if owner in found else whole
        for name, value in self._parameters.items():
            found.setdefault(name, torch.zeros(value.numel(), dtype=torch.float64, device=value.device))
        return found

    def _blocks(self, group: Group, total: Tensor) -> list[tuple[str, Tensor]]:
        """A group's gradient as those of its blocks, flat."""
        if len(group.blocks) == 1:
            return [(group.blocks[0], total)]
        # Outer products with the same δ: for each output, the features of all blocks side by side.
        outputs = group_shape(self._graph, group).outputs
        number, roles = group.uses[0]
        use = self._graph.uses[number]
        widths = [max(1, use.constants[role].shape.numel() // outputs) for role in roles]
        parts = total.reshape(outputs, -1).split(widths, dim=1)
        return [(use.parameters[role], part.reshape(-1)) for role, part in zip(roles, parts, strict=True)]

    def _places(self, owner: str, steps: Sequence[fx.Node]) -> Tensor:
        """Which entries of its parameter a block shows, in its order."""
        value = self._parameters[owner]
        shown: Any = torch.arange(value.numel(), device=value.device).reshape(value.shape)
        for step in steps:
            target: Any = step.target
            shown = target(shown, *step.args[1:], **step.kwargs)
        return shown.reshape(-1)
