"""What is raised where a model has no structure, and how another error is told in a few words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ntkscope.engines.torch.memory import is_out_of_memory

__all__ = ["StructureError", "first_line", "no_structure"]


class StructureError(ValueError):
    """The model has no per-sample structure that can be used; the message says why."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def no_structure(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is a reason to do without the structure, but for memory that runs out.

    Args:
        what: What could not be done, in words.

    Raises:
        StructureError: In place of any error.
    """
    try:
        yield
    except StructureError:
        raise
    except Exception as error:
        # It runs the user's code under torch's inner modes: there is no list of what that may raise.
        if is_out_of_memory(error):
            raise
        name = type(error).__name__
        words = f"{name}: {error}".splitlines()[0] if str(error) else name
        raise StructureError(f"{what} ({words})") from error
