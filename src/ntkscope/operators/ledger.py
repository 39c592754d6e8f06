"""The one counter of products: a kernel has a ledger, and whoever runs a product enters it there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ntkscope.results import Cost

__all__ = ["Ledger", "Meter"]


class Ledger:
    """What has been spent on one kernel since it was made.

    Attributes:
        products: Applications of the operator itself.
        vjps: Reverse products of the whole batch; a part of the batch counts in part.
        jvps: Forward products, likewise.
    """

    def __init__(self) -> None:
        self.products = 0
        self.vjps = 0.0
        self.jvps = 0.0

    def add(self, *, products: int = 0, vjps: float = 0.0, jvps: float = 0.0) -> None:
        """Enters what has just run."""
        self.products += products
        self.vjps += vjps
        self.jvps += jvps


class Meter:
    """What was spent on some kernels since the meter was made.

    Args:
        ledgers: Of the kernels; one that is named twice counts once.
        clock: Seconds.
    """

    def __init__(self, ledgers: Iterable[Ledger], clock: Callable[[], float] = time.perf_counter) -> None:
        self._ledgers = list({id(ledger): ledger for ledger in ledgers}.values())
        self._clock = clock
        self._before = self._total()
        self._start = clock()

    def _total(self) -> tuple[int, float, float]:
        return (
            sum(ledger.products for ledger in self._ledgers),
            sum(ledger.vjps for ledger in self._ledgers),
            sum(ledger.jvps for ledger in self._ledgers),
        )

    def __call__(self) -> Cost:
        """What was spent so far."""
        (products, vjps, jvps), before = self._total(), self._before
        return Cost(
            products - before[0],
            round(vjps - before[1]),
            round(jvps - before[2]),
            self._clock() - self._start,
        )
