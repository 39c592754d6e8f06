"""Ctrl-C ends a measurement between two passes, never within one.

Python raises KeyboardInterrupt at any instruction of the main thread. One that comes while torch
enters or leaves what stands on a stack of its own (modes that see operations, vmap, forward mode,
no_grad) leaves it there for good, and later numbers of the same process are others without a word.
So the signal is remembered while a pass runs, and acted upon where none does.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["heed_interrupt", "uninterrupted"]


class _Remembering:
    """The handler of SIGINT in the place of an earlier one."""

    def __init__(self, earlier: Callable[[int, FrameType | None], Any]) -> None:
        self._earlier = earlier
        self._is_pending = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._is_pending:
            # Asked for twice: a pass that does not end must not keep its user waiting.
            self._earlier(number, frame)
        self._is_pending = True

    def act(self) -> None:
        """What the earlier handler does, if a signal came; mostly it raises KeyboardInterrupt."""
        if self._is_pending:
            self._is_pending = False
            self._earlier(signal.SIGINT, None)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Remembers Ctrl-C till the outermost of these contexts ends, or :func:`heed_interrupt` is called.

    A second one is acted upon at once. Threads besides the main one are never interrupted, and a handler
    that is not Python's is left in its place.
    """
    earlier = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(earlier) or isinstance(earlier, _Remembering):
        yield
        return
    # A signal that comes before the next line is raised there, when there is nothing to undo.
    handler = _Remembering(earlier)
    try:
        signal.signal(signal.SIGINT, handler)
        yield
    finally:
        # Unless what ran inside has put one of its own there, as debuggers do.
        if signal.getsignal(signal.SIGINT) is handler:
            signal.signal(signal.SIGINT, earlier)
        handler.act()


def heed_interrupt() -> None:
    """Raises the KeyboardInterrupt of a Ctrl-C that came before: to be called where no pass runs."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _Remembering) and threading.current_thread() is threading.main_thread():
        handler.act()
