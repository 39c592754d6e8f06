"""Reverse mode on the recorded graph of some samples: from the state's gradients to the uses'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, fx
from torch.func import vmap

from ntkscope.engines.torch.modes import differentiable_operations
from ntkscope.engines.torch.reverse.written.program import Program
from ntkscope.engines.torch.reverse.written.tape import Tape

if TYPE_CHECKING:
    from ntkscope.engines.torch.samples.jacobian import SampleJacobian

__all__ = ["AutogradReverse", "OutputGradients", "ProgramReverse", "Reverse"]


@dataclass(frozen=True)
class OutputGradients:
    """δ of every use of a parameter that the probes reach, for k probes and B samples.

    Attributes:
        uses: By the number of the use, shape (k, B, *output shape of one sample).
        general: Gradients of the parameters that take the general way, shape (k, B, *shape).
        parts: Where only a part of a use's output is reached: (axis, places), and its gradient is that of
            these places.
        runs: Several uses side by side where they are made so, shape (R, k, B, *output shape), by
            the numbers of all uses of the run; the R that are reached are in ``uses`` too.
    """

    uses: Mapping[int, Tensor]
    general: Sequence[Tensor] = ()
    runs: Mapping[tuple[int, ...], Tensor] = field(default_factory=dict)
    parts: Mapping[int, tuple[int, range]] = field(default_factory=dict)


class Reverse(Protocol):
    """The graph of some samples at fixed parameters, run forward once, ready for many reverse passes."""

    @property
    def state(self) -> Tensor:
        """Shape (B, *state of one sample)."""
        ...

    @property
    def captured(self) -> Sequence[Tensor]:
        """The values that the rules need, shape (B, ...)."""
        ...

    def of_state(self, z: Tensor) -> OutputGradients:
        """From gradients of the state, shape (k, B, *state of one sample)."""
        ...

    def of_pieces(self, pieces: Sequence[tuple[int, Tensor]]) -> OutputGradients:
        """From single entries of pieces of the state, the same for every sample.

        Args:
            pieces: (number of the piece, its entries) for each piece; one probe an entry.
        """
        ...


class AutogradReverse:
    """By autograd, batched over probes by vmap: for graphs of any operations."""

    def __init__(self, owner: SampleJacobian, samples: range) -> None:
        function = owner.function
        graph, size = owner.graph, len(samples)
        leaves = owner.axes.split(function.inputs, samples)
        general = {
            name: function.parameters[name].expand(size, *function.parameters[name].shape).requires_grad_()
            for name in graph.general
        }
        zero = torch.zeros((), dtype=function.dtype, device=function.device)
        taps = [zero.expand(size, *use.tap_shape).requires_grad_() for use in graph.uses]
        inputs = [general.get(name, function.parameters[name]) for name in graph.names]
        axes = [0 if name in general else None for name in graph.names]
        axes += [0] * (len(leaves) + len(taps))
        # Recurrent layers are plain operations in the graph already.
        with torch.enable_grad(), differentiable_operations():
            state, pieces, captured = vmap(graph.module, in_dims=tuple(axes))(*inputs, *leaves, *taps)
        self.state: Tensor = state
        self.captured = [value.detach() for value in captured]
        self._pieces: tuple[Tensor, ...] = pieces
        self._uses = len(taps)
        self._leaves = [*taps, *general.values()]

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
        if not targets or not self._leaves or not any(target.requires_grad for target in targets):
            return OutputGradients({})
        # One probe alone needs no batch, whose overhead is felt where operations are small.
        batched = len(probes[0]) > 1
        with differentiable_operations():
            gradients = torch.autograd.grad(
                targets,
                self._leaves,
                probes if batched else [probe[0] for probe in probes],
                is_grads_batched=batched,
                retain_graph=True,
                allow_unused=True,
            )
        if not batched:
            gradients = tuple(None if g is None else g.unsqueeze(0) for g in gradients)
        uses = {number: g for number, g in enumerate(gradients[: self._uses]) if g is not None}
        return OutputGradients(uses, [g for g in gradients[self._uses :] if g is not None])


class ProgramReverse:
    """By a program: for graphs of linear maps, pointwise operations and moves."""

    def __init__(self, owner: SampleJacobian, program: Program, samples: range) -> None:
        self._program = program
        function = owner.function
        leaves = owner.axes.split(function.inputs, samples)
        values = [function.parameters[name] for name in owner.graph.names]
        axes = (*[None] * len(values), *[0] * len(leaves))
        with torch.no_grad(), differentiable_operations():
            state, captured, needed = vmap(program.module, in_dims=axes)(*values, *leaves)
            self._steps = program.bind(needed)
        self.state: Tensor = state
        self.captured: Sequence[Tensor] = captured

    def of_state(self, z: Tensor) -> OutputGradients:
        """As :meth:`Reverse.of_state`."""
        return self._run({self._program.state: z.clone(memory_format=torch.contiguous_format)})

    def of_pieces(self, pieces: Sequence[tuple[int, Tensor]]) -> OutputGradients:
        """As :meth:`Reverse.of_pieces`."""
        nodes = [self._program.pieces[number] for number, _ in pieces]
        targets = [self.state.new_empty(()).expand(len(self.state), *node.meta["shape"]) for node in nodes]
        probes = one_hot_probes(pieces, targets)
        return self._run({node: probe.contiguous() for node, probe in zip(nodes, probes, strict=True)})

    @torch.no_grad()
    def _run(self, seeds: dict[fx.Node, Tensor]) -> OutputGradients:
        program = self._program
        reach = program.reach(tuple(seeds))
        if not reach.order:
            return OutputGradients({})
        first = next(iter(seeds.values()))
        tape = Tape(program, reach, (first.shape[0], first.shape[1]), self.state)
        for node, seed in seeds.items():
            tape.give(node, seed)
        for passed in reach.order:
            step = self._steps.get(passed)
            if step is not None:
                step(tape)
        tape.finish()
        uses = {n: tape.of(use) for n in reach.uses if (use := program.tapped[n]) is not None}
        parts = {n: (program.parted[n].axis, places) for n, places in reach.parts.items()}
        return OutputGradients(uses, (), tape.runs, parts)


def one_hot_probes(pieces: Sequence[tuple[int, Tensor]], targets: Sequence[Tensor]) -> list[Tensor]:
    """One probe an entry: (k, B, *shape of the piece) for each piece, all samples the same memory."""
    count = sum(len(entries) for _, entries in pieces)
    probes = []
    start = 0
    for (_, entries), target in zip(pieces, targets, strict=True):
        probe = target.new_zeros(count, math.prod(target.shape[1:]))
        probe[torch.arange(start, start + len(entries)), entries] = 1
        start += len(entries)
        probes.append(probe.reshape(count, 1, *target.shape[1:]).expand(count, *target.shape))
    return probes
