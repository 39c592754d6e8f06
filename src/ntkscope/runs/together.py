"""What all processes that grow a run decide alike: what time it is, and whether results are looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["agreed", "deciding_together", "now"]

Value = TypeVar("Value")

_agree: ContextVar[Callable[[Any], Any] | None] = ContextVar("agree", default=None)


def agreed(value: Value) -> Value:
    """A value that decides what comes: inside of :func:`deciding_together` that of one of the processes."""
    agree = _agree.get()
    found: Value = value if agree is None else agree(value)
    return found


def now() -> float:
    """Seconds, by one clock."""
    return agreed(time.perf_counter())


@contextmanager
def deciding_together(agree: Callable[[Any], Any]) -> Iterator[None]:
    """Runs inside go on and stop alike on all processes.

    Args:
        agree: Takes each process's value to that of one of them; all call it at the same places.
    """
    token = _agree.set(agree)
    try:
        yield
    finally:
        _agree.reset(token)
