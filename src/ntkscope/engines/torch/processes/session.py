"""The context of all work that processes do together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ntkscope.engines.torch.modes import undisturbed
from ntkscope.engines.torch.processes.exchange import Exchange
from ntkscope.runs.together import deciding_together

__all__ = ["session_of"]


@contextmanager
def session_of(exchange: Exchange) -> Iterator[None]:
    """One thread at a time, outside of inference mode; the first process decides when all stop.

    Args:
        exchange: Between the processes.
    """
    with undisturbed():
        if exchange.size == 1:
            yield
            return
        with deciding_together(exchange.first):
            yield
