"""Fields as strict JSON keeps them, and back: what is not finite is null, and named beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["NOT_FINITE", "Fields", "plain_numbers"]

#: Where the numbers are named that JSON has no word for: {"stderr": "inf"}.
NOT_FINITE = "not_finite"


def plain_numbers(**numbers: float | None) -> dict[str, Any]:
    """Numbers by name; those that are not finite as ``None``, and in words under ``"not_finite"``.

    >>> plain_numbers(value=2.0, stderr=float("inf"))
    {'value': 2.0, 'stderr': None, 'not_finite': {'stderr': 'inf'}}
    """
    given = {name: None if number is None else float(number) for name, number in numbers.items()}
    words = {name: str(x) for name, x in given.items() if x is not None and not math.isfinite(x)}
    finite = {name: None if name in words else x for name, x in given.items()}
    return {**finite, NOT_FINITE: words} if words else {**finite}


class Fields:
    """The fields of a dict that should be what ``to_dict`` made, one typed access each.

    Args:
        data: The dict.
        what: What it should be, for the errors.

    Raises:
        ValueError: If it is no dict; and by every method, if the field is missing or wrong.
    """

    def __init__(self, data: Any, what: str) -> None:
        if not isinstance(data, Mapping):
            raise ValueError(
                f"{what} must be a dict, found {_found(data)}; pass what to_dict() returned, or JSON of it"
            )
        self._data = data
        self._what = what

    def get(self, name: str) -> Any:
        """The field, whatever it is."""
        if name not in self._data:
            known = ", ".join(map(repr, self._data)) or "none"
            raise ValueError(f"{self._what} lacks the field {name!r}; its fields are {known}")
        return self._data[name]

    def text(self, name: str) -> str:
        """A str."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def whole(self, name: str) -> int:
        """An int."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a whole number")
        return value

    def whole_or_none(self, name: str) -> int | None:
        """An int, or ``None``."""
        return None if self.get(name) is None else self.whole(name)

    def flag_or_none(self, name: str) -> bool | None:
        """A bool, or ``None``."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true, false or null")
        return value

    def sequence(self, name: str) -> list[Any]:
        """A list."""
        value = self.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of str."""
        value = self.sequence(name)
        if not all(isinstance(one, str) for one in value):
            raise self._wrong(name, "a list of texts")
        return value

    def number(self, name: str) -> float:
        """A float, finite or not."""
        value = self.number_or_none(name)
        if value is None:
            raise self._wrong(name, f"a number (or null, with its name under {NOT_FINITE!r})")
        return value

    def number_or_none(self, name: str) -> float | None:
        """A float, finite or not, or ``None``."""
        value = self.get(name)
        if value is None:
            return self._not_finite(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, "a number or null")
        return float(value)

    def pair_or_none(self, name: str) -> tuple[float, float] | None:
        """Two floats, or ``None``; that too where the field is missing, as in what earlier versions wrote."""
        value = self._data.get(name)
        if value is None:
            return None
        is_pair = isinstance(value, list) and len(value) == 2
        if not is_pair or not all(type(end) in (int, float) for end in value):
            raise self._wrong(name, "two numbers or null")
        return float(value[0]), float(value[1])

    def number_or(self, name: str, default: float) -> float:
        """A float; ``default`` where the field is missing, as in what earlier versions wrote."""
        return self.number(name) if name in self._data else default

    def _not_finite(self, name: str) -> float | None:
        words = self._data.get(NOT_FINITE, {})
        word = words.get(name) if isinstance(words, Mapping) else "no dict"
        if word is None:
            return None
        if word not in ("nan", "inf", "-inf"):
            raise self._wrong(NOT_FINITE, "a dict of 'nan', 'inf' or '-inf' by field")
        return float(word)

    def _wrong(self, name: str, expected: str) -> ValueError:
        return ValueError(
            f"{self._what} has the field {name!r} {_found(self.get(name))}, expected {expected}"
        )


def _found(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
