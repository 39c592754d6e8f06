"""Reverse mode by autograd, on the recorded graph of some samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.memory import is_out_of_memory
from ntkscope.engines.torch.modes import differentiable_operations
from ntkscope.engines.torch.reverse.base import OutputGradients, one_hot_probes
from ntkscope.engines.torch.reverse.workspace import Workspace

__all__ = ["AutogradReverse", "batched_gradients"]


class AutogradReverse:
    """By autograd, batched over probes by vmap: for graphs of any operations.

    Args:
        graph: The state of one sample, opened at the uses of its parameters.
        parameters: Their values by name.
        leaves: The inputs of the samples, samples first.
        device: The state's.
        randomness: As vmap takes it.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: Mapping[str, Tensor],
        leaves: Sequence[Tensor],
        device: torch.device,
        randomness: str = "error",
    ) -> None:
        size = len(leaves[0])
        general = {
            name: parameters[name].expand(size, *parameters[name].shape).requires_grad_()
            for name in graph.general
        }
        taps = [
            torch.zeros((), dtype=use.dtype, device=device).expand(size, *use.tap_shape).requires_grad_()
            for use in graph.uses
        ]
        inputs = [general.get(name, parameters[name]) for name in graph.names]
        axes = [0 if name in general else None for name in graph.names]
        axes += [0] * (len(leaves) + len(taps))
        # Recurrent layers are plain operations in the graph already.
        with torch.enable_grad(), differentiable_operations():
            state, pieces, captured = vmap(graph.module, in_dims=tuple(axes), randomness=randomness)(
                *inputs, *leaves, *taps
            )
        self.state: Tensor = state
        self.captured = [value.detach() for value in captured]
        self._pieces: tuple[Tensor, ...] = pieces
        self._taps = taps
        self._general = general
        self._together = True

    def of_state(self, z: Tensor, memory: Workspace | None = None) -> OutputGradients:
        """As :meth:`Reverse.of_state`, in memory of its own."""
        return self._pull([self.state], [z])

    def of_pieces(
        self, pieces: Sequence[tuple[int, Tensor]], memory: Workspace | None = None
    ) -> OutputGradients:
        """As :meth:`Reverse.of_pieces`, in memory of its own."""
        targets = [self._pieces[number] for number, _ in pieces]
        probes = one_hot_probes(pieces, targets)
        pairs = [(target, p) for target, p in zip(targets, probes, strict=True) if target.requires_grad]
        return self._pull([target for target, _ in pairs], [probe for _, probe in pairs])

    def _pull(self, targets: list[Tensor], probes: list[Tensor]) -> OutputGradients:
        leaves = [*self._taps, *self._general.values()]
        if not targets or not leaves or not any(target.requires_grad for target in targets):
            return OutputGradients({})
        with differentiable_operations():
            gradients = self._gradients(targets, leaves, probes)
        of_taps, of_general = gradients[: len(self._taps)], gradients[len(self._taps) :]
        uses = {number: g for number, g in enumerate(of_taps) if g is not None}
        general = {name: g for name, g in zip(self._general, of_general, strict=True) if g is not None}
        return OutputGradients(uses, general)

    def _gradients(
        self, targets: list[Tensor], leaves: list[Tensor], probes: list[Tensor]
    ) -> list[Tensor | None]:
        found, self._together = batched_gradients(targets, leaves, probes, together=self._together)
        return found


def batched_gradients(
    targets: list[Tensor], leaves: list[Tensor], probes: list[Tensor], *, together: bool
) -> tuple[list[Tensor | None], bool]:
    """Gradients of the leaves for all probes, which come first in each block of ``probes``.

    Args:
        targets: What is differentiated.
        leaves: By what.
        probes: Gradients of the targets.
        together: Whether to try all at once, and not one by one.

    Returns:
        The gradients, ``None`` for a leaf that is not reached, and whether trying at once is worth it again.
    """
    # One probe alone needs no batch, whose overhead is felt where operations are small.
    if together and len(probes[0]) > 1:
        try:
            found = torch.autograd.grad(
                targets, leaves, probes, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
            return list(found), True
        except Exception as error:
            # Some backward passes cannot be batched (sparse matrices), and say so in many ways.
            if is_out_of_memory(error):
                raise
            together = False
    rows = [
        torch.autograd.grad(
            targets, leaves, [probe[row] for probe in probes], retain_graph=True, allow_unused=True
        )
        for row in range(len(probes[0]))
    ]
    # Whether a leaf is reached does not depend on the probe.
    stacked = [None if of_leaf[0] is None else torch.stack(of_leaf) for of_leaf in zip(*rows, strict=True)]
    return stacked, together
