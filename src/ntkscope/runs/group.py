"""Products of maps, and estimates made of independent estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ntkscope.operators.space import Block, Map
from ntkscope.results import Cost, Estimate
from ntkscope.runs.drive import Run
from ntkscope.runs.statistics import Summary, combine_independent

__all__ = ["Fixed", "GroupRun", "ProductMap", "power_estimate"]

Result = TypeVar("Result")


class ProductMap:
    """A B as one map: every product costs one of A and one of B.

    Args:
        first: A, shape (n, n).
        second: B, shape (n, n).
    """

    def __init__(self, first: Map, second: Map) -> None:
        self._first = first
        self._second = second
        self.shape = (first.shape[0], second.shape[1])
        self.epsilon = max(first.epsilon, second.epsilon)
        self.signs = second.signs
        self.identity = second.identity
        self.gram = second.gram
        self.inner = second.inner
        self.combine = second.combine
        self.concat = second.concat

    @property
    def cost(self) -> Cost:
        """What both maps have spent."""
        return self._first.cost if self._first is self._second else self._first.cost + self._second.cost

    def apply(self, block: Block) -> Block:
        """A (B X)."""
        return self._first.apply(self._second.apply(block))


class Fixed:
    """A run that has nothing to do: an estimate that is known already."""

    minimum = 0
    quantum = 1
    stride = math.inf

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate

    def grow(self, products: int) -> None:
        """Nothing."""

    def result(self) -> Estimate:
        """The estimate."""
        return self._estimate


class GroupRun(Generic[Result]):
    """Independent runs side by side, each with its share of the products.

    Args:
        parts: Runs that share no randomness.
        shares: Whole numbers in proportion to which the products are shared.
        finish: Takes the parts' estimates to the result.
    """

    def __init__(
        self,
        parts: Sequence[Run[Estimate]],
        shares: Sequence[int],
        finish: Callable[[list[Estimate]], Result],
    ) -> None:
        self._parts = parts
        self._shares = shares
        self._finish = finish
        needed = [-(-part.minimum // share) for part, share in zip(parts, shares, strict=True) if share]
        self.minimum = max(needed, default=0) * sum(shares)
        self.quantum = max(1, sum(shares) * max(part.quantum for part in parts))
        self.stride = min(part.stride for part in parts)

    def grow(self, products: int) -> None:
        """Grow every part to its share."""
        unit = products // max(1, sum(self._shares))
        for part, share in zip(self._parts, self._shares, strict=True):
            part.grow(unit * share)

    def result(self) -> Result:
        """What the parts' estimates make together."""
        return self._finish([part.result() for part in self._parts])


def power_estimate(
    estimates: Sequence[Estimate],
    powers: Sequence[float],
    *,
    method: str,
    quantity: str,
    cost: Cost,
    seed: int | None,
) -> Estimate:
    """Π vⱼ^pⱼ of independent estimates, with its error to first order.

    A factor that is negative under a root, or 0 under a fraction, gives nan and a note.
    """
    summaries = [Summary(e.value, e.stderr, e.degrees_of_freedom) for e in estimates]
    pairs = list(zip(summaries, powers, strict=True))
    note = ""
    if any((s.value < 0 and power != int(power)) or (s.value <= 0 and power < 0) for s, power in pairs):
        summary = Summary(math.nan, None)
        note = "not defined: a squared norm came out as 0 or negative (a zero kernel, or too few products)"
    elif any(s.value == 0 for s, _ in pairs):
        summary = Summary(0.0, None)
    else:
        summary = combine_independent(summaries, powers)
    return Estimate(
        summary.value,
        summary.stderr,
        method,
        quantity,
        degrees_of_freedom=summary.degrees_of_freedom,
        cost=cost,
        seed=seed,
        note=note,
    )
