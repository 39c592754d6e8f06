"""Errors that callers tell apart by more than their words."""

from __future__ import annotations

__all__ = ["StateError"]


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
