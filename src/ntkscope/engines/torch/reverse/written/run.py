"""A written-out reverse pass at the values of some samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx
from torch.func import vmap

from ntkscope.engines.torch.modes import differentiable_operations
from ntkscope.engines.torch.reverse.base import OutputGradients, one_hot_probes
from ntkscope.engines.torch.reverse.workspace import Workspace
from ntkscope.engines.torch.reverse.written.program import Program
from ntkscope.engines.torch.reverse.written.steps import ReverseStep
from ntkscope.engines.torch.reverse.written.store import GradientStore

__all__ = ["ProgramReverse"]


class ProgramReverse:
    """By a program: for graphs of linear maps, pointwise operations and moves.

    Args:
        program: The reverse pass of the graph.
        parameters: The parameters' values by name.
        leaves: The inputs of the samples, samples first.
    """

    def __init__(self, program: Program, parameters: Mapping[str, Tensor], leaves: Sequence[Tensor]) -> None:
        self._program = program
        values = [parameters[name] for name in program.names]
        axes = (*[None] * len(values), *[0] * len(leaves))
        with torch.no_grad(), differentiable_operations():
            state, captured, needed = vmap(program.module, in_dims=axes)(*values, *leaves)
            self._steps = {node: (node, step) for node, step in program.bind(needed).items()}
        self._passed: dict[tuple[fx.Node, ...], list[tuple[fx.Node, ReverseStep | None]]] = {}
        self.state: Tensor = state
        self.captured: Sequence[Tensor] = captured

    def of_state(self, z: Tensor, memory: Workspace | None = None) -> OutputGradients:
        """As :meth:`Reverse.of_state`."""
        return self._run({self._program.state: z.clone(memory_format=torch.contiguous_format)}, memory)

    def of_pieces(
        self, pieces: Sequence[tuple[int, Tensor]], memory: Workspace | None = None
    ) -> OutputGradients:
        """As :meth:`Reverse.of_pieces`."""
        nodes = [self._program.pieces[number] for number, _ in pieces]
        targets = [self.state.new_empty(()).expand(len(self.state), *node.meta["shape"]) for node in nodes]
        probes = one_hot_probes(pieces, targets)
        seeds = {node: probe.contiguous() for node, probe in zip(nodes, probes, strict=True)}
        return self._run(seeds, memory)

    @torch.no_grad()
    def _run(self, seeds: dict[fx.Node, Tensor], memory: Workspace | None) -> OutputGradients:
        program = self._program
        starts = tuple(seeds)
        reach = program.reach(starts)
        if not reach.order:
            return OutputGradients({})
        first = next(iter(seeds.values()))
        leading = (first.shape[0], first.shape[1])
        store = GradientStore(program.layout, reach, leading, self.state, memory or Workspace(0))
        for node, seed in seeds.items():
            store.give(node, seed)
        passed = self._passed.get(starts)
        if passed is None:
            passed = self._passed[starts] = [self._steps[n] for n in reach.order if n in self._steps]
        for node, step in passed:
            if step is not None:
                step(store)
            elif store.apart:
                store.rejoin(node)
        store.finish()
        layout = program.layout
        uses = {n: store.of(use) for n in reach.uses if (use := layout.tapped[n]) is not None}
        parts = {n: (layout.split_outputs[n].axis, places) for n, places in reach.parts.items()}
        return OutputGradients(uses, runs=store.runs, parts=parts)
