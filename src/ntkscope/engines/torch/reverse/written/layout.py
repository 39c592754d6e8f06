"""Where the gradients of a written-out reverse pass lie, and which of them some starts reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

__all__ = ["Layout", "Reach", "SplitOutput"]


@dataclass(frozen=True)
class Reach:
    """What gradients pass on their way from some starts to the taps.

    Attributes:
        order: The nodes, last first.
        uses: The numbers of the uses.
        parts: Of the uses in ``Layout.split_outputs``, which parts.
    """

    order: tuple[fx.Node, ...]
    uses: tuple[int, ...]
    parts: Mapping[int, range]


@dataclass(frozen=True)
class SplitOutput:
    """A use whose output falls into parts along an axis (the inputs' gates of a recurrence, into steps).

    Attributes:
        operation: The one that takes it apart.
        axis: Of the output of one sample.
        parts: The nodes of the parts by their places.
    """

    operation: fx.Node
    axis: int
    parts: Mapping[int, fx.Node]


@dataclass(frozen=True)
class Layout:
    """Which gradients share memory.

    Attributes:
        tapped: Node whose gradient is the δ of each use; ``None`` where the use is dead.
        views: From the gradient of a node's first argument to its own, where that is a view of it.
        split_outputs: By the number of the use.
        runs: Numbers of uses whose gradients lie side by side; none is in two runs.
    """

    tapped: Sequence[fx.Node | None]
    views: Mapping[fx.Node, Callable[[Any], Any]]
    split_outputs: Mapping[int, SplitOutput]
    runs: Sequence[tuple[int, ...]]
