"""Errors that callers tell apart by more than their words, and the words of Python and of the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = [
    "ProcessLostError",
    "StateError",
    "argument",
    "said",
    "words_of_the_terminal",
]

_terminal: ContextVar[bool] = ContextVar("terminal", default=False)

#: Options that are not called as their arguments are.
_OPTIONS = {"outputs": "--output"}


@contextmanager
def words_of_the_terminal() -> Iterator[None]:
    """Messages made inside name options of the command line in place of arguments in Python."""
    token = _terminal.set(True)
    try:
        yield
    finally:
        _terminal.reset(token)


def said(python: str, terminal: str) -> str:
    """One of two ways to say a thing: to who calls from Python, or to who types a command."""
    return terminal if _terminal.get() else python


def argument(name: str, *values: Any) -> str:
    """An argument's name, and the values that it may take if there are any, as the reader writes it.

    >>> argument("products", 6), argument("batch_dim", None), argument("outputs")
    ('products=6', 'batch_dim=None', 'outputs=')
    >>> argument("method", "exact", "gram")
    "method='exact' or 'gram'"
    >>> with words_of_the_terminal():
    ...     argument("products", 6), argument("batch_dim", None), argument("method", "exact", "gram")
    ('--products 6', '--batch-dim none', '--method exact or gram')
    """
    option = _OPTIONS.get(name, "--" + name.replace("_", "-"))
    if not values:
        return said(f"{name}=", option)
    shown = [said(repr(value), "none" if value is None else str(value)) for value in values]
    return said(f"{name}=", f"{option} ") + " or ".join(
        [*([", ".join(shown[:-1])] if shown[1:] else []), shown[-1]]
    )


class StateError(TypeError):
    """What was watched is not one tensor, so the state has to be chosen.

    Attributes:
        found: What was found, and what was expected.
        remedy: What to do in Python; a front end in other words may give its own.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found = found
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[StateError], tuple[str, str]]:
        return type(self), (self.found, self.remedy)


class ProcessLostError(RuntimeError):
    """Another process, which this one works with, has ended or failed."""
