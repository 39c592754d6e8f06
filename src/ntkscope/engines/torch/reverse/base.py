"""Reverse mode on the recorded graph of some samples: from the state's gradients to the uses'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ntkscope.engines.torch.probes import one_hot
from ntkscope.engines.torch.reverse.workspace import Workspace

__all__ = ["OutputGradients", "Reverse", "one_hot_probes"]


@dataclass(frozen=True)
class OutputGradients:
    """δ of every use of a parameter that the probes reach, for k probes and B samples.

    Attributes:
        uses: By the number of the use, shape (k, B, *output shape of one sample).
        general: Of the parameters that take the general way, by name, shape (k, B, *shape).
        parts: Where only a part of a use's output is reached: (axis, places), and its gradient is that of
            these places.
        runs: Several uses side by side where they are made so, shape (R, k, B, *output shape), by
            the numbers of all uses of the run; the R that are reached are in ``uses`` too.
    """

    uses: Mapping[int, Tensor]
    general: Mapping[str, Tensor] = field(default_factory=dict)
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

    def of_state(self, z: Tensor, memory: Workspace | None = None) -> OutputGradients:
        """From gradients of the state, shape (k, B, *state of one sample).

        Args:
            z: The gradients.
            memory: Where what is found may lie, until the next pass that is given the same.
        """
        ...

    def of_pieces(
        self, pieces: Sequence[tuple[int, Tensor]], memory: Workspace | None = None
    ) -> OutputGradients:
        """From single entries of pieces of the state, the same for every sample.

        Args:
            pieces: (number of the piece, its entries) for each piece; one probe an entry.
            memory: As for :meth:`of_state`.
        """
        ...


def one_hot_probes(pieces: Sequence[tuple[int, Tensor]], targets: Sequence[Tensor]) -> list[Tensor]:
    """One probe an entry: (k, B, *shape of the piece) for each piece, all samples the same memory."""
    count = sum(len(entries) for _, entries in pieces)
    probes = []
    start = 0
    for (_, entries), target in zip(pieces, targets, strict=True):
        shape = target.shape[1:]
        probe = one_hot(entries, math.prod(shape), target.dtype, target.device, start, count)
        start += len(entries)
        probes.append(probe.reshape(count, 1, *shape).expand(count, *target.shape))
    return probes
