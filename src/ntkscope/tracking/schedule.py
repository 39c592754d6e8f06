"""When to look: every so many steps, or as often as a share of the time allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch

__all__ = ["Clock", "EverySteps", "Schedule", "Share", "Stopwatch", "make_schedule", "synchronize"]

Clock = Callable[[], float]


class Stopwatch:
    """Seconds of training and of looking, apart.

    Args:
        trained: Seconds of training before, of a run that goes on.
        clock: Seconds from some moment.

    Attributes:
        looking: Seconds of all looks since it was made.
        last: Seconds of the last look.
    """

    def __init__(self, trained: float = 0.0, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._before = trained
        self._start = clock()
        self._pauses = 0.0
        self.looking = 0.0
        self.last = 0.0

    @property
    def trained(self) -> float:
        """Seconds of training, before it was made too."""
        return self._before + self.watched

    @property
    def watched(self) -> float:
        """Seconds of training since it was made."""
        return self._clock() - self._start - self._pauses

    def now(self) -> float:
        """The clock."""
        return self._clock()

    def pause(self, since: float, counted: bool = True) -> float:
        """Takes the time since then off the training; a look's seconds, unless it was the set-up."""
        spent = self._clock() - since
        self._pauses += spent
        self.last = spent
        if counted:
            self.looking += spent
        return spent


class Schedule(Protocol):
    """Says whether it is time to look."""

    def due(self, step: int, watch: Stopwatch) -> bool:
        """Whether to look after so many steps."""
        ...

    def expects(self, step: int) -> bool:
        """Whether a look belongs to this step whatever the clock says."""
        ...


class EverySteps:
    """Every so many steps, counted from 0."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._seen: int | None = None

    def due(self, step: int, watch: Stopwatch) -> bool:
        """As :meth:`Schedule.due`; where steps come several at once, after those that hold the number."""
        before = step - 1 if self._seen is None else min(self._seen, step - 1)
        self._seen = step
        return step // self._steps > before // self._steps

    def expects(self, step: int) -> bool:
        """As :meth:`Schedule.expects`."""
        return step % self._steps == 0


class Share:
    """As often as looks and the next one take no more than a share of the training's seconds."""

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead

    def due(self, step: int, watch: Stopwatch) -> bool:
        """As :meth:`Schedule.due`."""
        return watch.looking + watch.last <= self._overhead * watch.watched

    def expects(self, step: int) -> bool:
        """As :meth:`Schedule.expects`: the start alone."""
        return step == 0


def make_schedule(every: int | Literal["auto"], overhead: float) -> Schedule:
    """The schedule of a tracker.

    Raises:
        TypeError: If ``every`` is neither a whole number nor ``"auto"``.
        ValueError: If it is not positive, or the share is not between 0 and 1.
    """
    if not 0 < overhead < 1:
        raise ValueError(f"overhead must lie between 0 and 1, found {overhead}; use 0.05 for 5% of the time")
    if every == "auto":
        return Share(overhead)
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every must be a whole number of steps or 'auto', found {every!r}")
    if every < 1:
        raise ValueError(f"every must be at least 1, found {every}; use 'auto' to look as time allows")
    return EverySteps(every)


def synchronize(device: Any) -> None:
    """Waits for work that training left running, which is not to be counted as the look's."""
    if getattr(device, "type", "") == "cuda":
        torch.cuda.synchronize(device)
