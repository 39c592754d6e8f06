"""Runs made of runs: side by side, given another form, or known already."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ntkscope.runs.drive import Run, first_look_of

__all__ = ["Fixed", "GroupRun", "MappedRun", "Once", "Priced"]

Part = TypeVar("Part")
Result = TypeVar("Result")


class Fixed(Generic[Result]):
    """A run that has nothing to do: what it finds is known already."""

    minimum = 0
    quantum = 1
    stride = math.inf

    def __init__(self, known: Result) -> None:
        self._known = known

    def grow(self, products: int) -> None:
        """Nothing."""

    def result(self) -> Result:
        """What is known."""
        return self._known


class Once(Generic[Result]):
    """A run in one step: work whose result is exact.

    Args:
        work: What is done.
    """

    minimum = 1
    quantum = 1
    stride = math.inf

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._found: list[Result] = []

    def grow(self, products: int) -> None:
        """Does the work, once."""
        if products >= self.minimum and not self._found:
            self._found.append(self._work())

    def result(self) -> Result:
        """What was found; a ValueError before."""
        if not self._found:
            raise ValueError("the exact work has not been done; grow the run first")
        return self._found[0]


class Priced(Generic[Result]):
    """An exact run that stands in for another one, at a price in that one's products.

    Args:
        make: Makes the exact run when it is needed.
        price: As many products of the other run are worth it.
    """

    quantum = 1
    stride = math.inf

    def __init__(self, make: Callable[[], Run[Result]], price: int) -> None:
        self._make = make
        self._run: Run[Result] | None = None
        self.minimum = max(1, price)

    def grow(self, products: int) -> None:
        """Runs it to its end, where that is paid."""
        if products >= self.minimum:
            self._run = self._run or self._make()
            self._run.grow(self._run.minimum)

    def result(self) -> Result:
        """What it found; a ValueError before."""
        if self._run is None:
            raise ValueError(f"the exact run has not begun; spend {self.minimum} products")
        return self._run.result()


class MappedRun(Generic[Part, Result]):
    """A run whose result is taken to another form.

    Args:
        run: The run.
        form: Takes what it finds to the result.
    """

    def __init__(self, run: Run[Part], form: Callable[[Part], Result]) -> None:
        self._run = run
        self._form = form
        self.minimum, self.quantum, self.stride = run.minimum, run.quantum, run.stride
        self.first_look = first_look_of(run)
        self.grow = run.grow

    def result(self) -> Result:
        """What was found so far, in its form."""
        return self._form(self._run.result())


class GroupRun(Generic[Result]):
    """Independent runs side by side, each with its share of the products.

    Args:
        parts: Runs that share no randomness.
        shares: Whole numbers in proportion to which the products are shared.
        finish: Takes what the parts find to the result.
    """

    def __init__(
        self,
        parts: Sequence[Run[Any]],
        shares: Sequence[int],
        finish: Callable[[list[Any]], Result],
    ) -> None:
        self._parts = parts
        self._shares = shares
        self._finish = finish
        self.minimum = self._products([part.minimum for part in parts])
        # Only where every part that spends knows by itself when its error bar holds.
        looks = [first_look_of(part) for part, share in zip(parts, shares, strict=True) if share]
        known = [look for look in looks if look is not None]
        self.first_look = max(known) * sum(shares) if known and len(known) == len(looks) else None
        self.quantum = max(1, sum(shares) * max(part.quantum for part in parts))
        self.stride = min(part.stride for part in parts)

    def _products(self, needed: list[int]) -> int:
        """Of all parts together, so that each has what it needs."""
        units = [-(-each // share) for each, share in zip(needed, self._shares, strict=True) if share]
        return max(units, default=0) * sum(self._shares)

    def grow(self, products: int) -> None:
        """Grow every part to its share."""
        unit = products // max(1, sum(self._shares))
        for part, share in zip(self._parts, self._shares, strict=True):
            part.grow(unit * share)

    def result(self) -> Result:
        """What the parts find, together."""
        return self._finish([part.result() for part in self._parts])
