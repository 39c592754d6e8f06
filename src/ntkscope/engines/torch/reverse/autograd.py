"""Reverse mode by autograd, on the recorded graph of some samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.modes import differentiable_operations
from ntkscope.engines.torch.reverse.base import OutputGradients, one_hot_probes

__all__ = ["AutogradReverse"]


class AutogradReverse:
    """By autograd, batched over probes by vmap: for graphs of any operations.

    Args:
        graph: The state of one sample, opened at the uses of its parameters.
        parameters: Their values by name.
        leaves: The inputs of the samples, samples first.
        dtype: The state's.
        device: The state's.
        randomness: As vmap takes it.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: Mapping[str, Tensor],
        leaves: Sequence[Tensor],
        dtype: torch.dtype,
        device: torch.device,
        randomness: str = "error",
    ) -> None:
        size = len(leaves[0])
        general = {
            name: parameters[name].expand(size, *parameters[name].shape).requires_grad_()
            for name in graph.general
        }
        zero = torch.zeros((), dtype=dtype, device=device)
        taps = [zero.expand(size, *use.tap_shape).requires_grad_() for use in graph.uses]
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

    def of_state(self, z: Tensor) -> OutputGradients:
        """As :meth:`Reverse.of_state`."""
        return self._pull([self.state], [z])

    def of_pieces(self, pieces: Sequence[tuple[int, Tensor]]) -> OutputGradients:
        """As :meth:`Reverse.of_pieces`."""
        targets = [self._pieces[number] for number, _ in pieces]
        probes = one_hot_probes(pieces, targets)
        pairs = [(target, p) for target, p in zip(targets, probes, strict=True) if target.requires_grad]
        return self._pull([target for target, _ in pairs], [probe for _, probe in pairs])

    def _pull(self, targets: list[Tensor], probes: list[Tensor]) -> OutputGradients:
        leaves = [*self._taps, *self._general.values()]
        if not targets or not leaves or not any(target.requires_grad for target in targets):
            return OutputGradients({})
        # One probe alone needs no batch, whose overhead is felt where operations are small.
        batched = len(probes[0]) > 1
        with differentiable_operations():
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
        of_taps, of_general = gradients[: len(self._taps)], gradients[len(self._taps) :]
        uses = {number: g for number, g in enumerate(of_taps) if g is not None}
        general = {name: g for name, g in zip(self._general, of_general, strict=True) if g is not None}
        return OutputGradients(uses, general)
