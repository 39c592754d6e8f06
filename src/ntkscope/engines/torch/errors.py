"""What is raised where a model has no structure, and how another error is told in a few words."""

from __future__ import annotations

__all__ = ["StructureError", "first_line"]


class StructureError(ValueError):
    """The model has no per-sample structure that can be used; the message says why."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
