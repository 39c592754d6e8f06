"""Which reverse pass a graph takes: the only place that knows of the written-out one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.reverse.autograd import AutogradReverse
from ntkscope.engines.torch.reverse.base import Reverse
from ntkscope.engines.torch.reverse.written.program import Program
from ntkscope.engines.torch.reverse.written.run import ProgramReverse

__all__ = ["ReversePass", "pick_reverse"]


class Begin(Protocol):
    """Runs a graph forward."""

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        leaves: Sequence[Tensor],
        device: torch.device,
    ) -> Reverse:
        """At these parameters, for samples whose inputs come samples first, on the state's device."""
        ...


@dataclass(frozen=True)
class ReversePass:
    """One way through a graph, forward once and back many times.

    Attributes:
        begin: Runs the graph forward.
        words: What there is to say of it.
        fallback: What to take where this one does not hold; ``None`` for the last resort.
    """

    begin: Begin
    words: str = ""
    fallback: ReversePass | None = None

    def given_up(self, reason: str) -> ReversePass | None:
        """The fallback, which says why it is taken."""
        words = f"the reverse pass goes by autograd, since the written-out one fails: {reason}"
        return self.fallback and replace(self.fallback, words=words)


def pick_reverse(graph: Graph, runs: Sequence[tuple[int, ...]]) -> ReversePass:
    """The quickest reverse pass of a graph that may hold.

    Args:
        graph: The state of one sample, opened at the uses of its parameters.
        runs: Numbers of uses whose gradients are wanted side by side; none is in two runs.
    """
    by_autograd = ReversePass(functools.partial(AutogradReverse, graph))
    program = Program.of(graph, runs)
    if program is None:
        return by_autograd

    def begin(parameters: Mapping[str, Tensor], leaves: Sequence[Tensor], device: torch.device) -> Reverse:
        return ProgramReverse(program, parameters, leaves)

    return ReversePass(begin, "the reverse pass is written out", by_autograd)
