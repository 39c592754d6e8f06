"""Exact moments: products with every column of the identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ntkscope.operators.space import Map
from ntkscope.results import Estimate
from ntkscope.runs.moments import Moments

__all__ = ["ExactFactorRun", "ExactRun"]

_TILE = 64
# Rows of J at a time, where no product is kept.
_ROWS = 256


class ExactRun:
    """tr K_a and ⟨K_a, K_b⟩ from the columns of every kernel, in tiles.

    Uses n products a kernel and keeps nothing of size n².

    Args:
        maps: The kernels, c maps of shape (n, n).
    """

    quantum = 1
    stride = math.inf

    def __init__(self, maps: Sequence[Map]) -> None:
        self._maps = maps
        self._size = maps[0].shape[1]
        self._column = 0
        self._traces = np.zeros(len(maps))
        self._inner = np.zeros((len(maps), len(maps)))
        self.minimum = len(maps) * self._size

    def grow(self, products: int) -> None:
        """Take columns until ``products`` have run in all."""
        maps = self._maps
        while self._column < min(products // len(maps), self._size):
            stop = min(self._column + _TILE, products // len(maps), self._size)
            identity = maps[0].identity(self._column, stop)
            columns = [operator.apply(identity) for operator in maps]
            traces = [maps[0].inner(identity, block).sum() for block in columns]
            inner = [[maps[0].inner(x, y).sum() for y in columns] for x in columns]
            self._traces, self._inner = self._traces + traces, self._inner + inner
            self._column = stop

    def result(self) -> Moments:
        """The exact moments; a ValueError while columns are missing."""
        if self._column < self._size:
            raise ValueError(
                f"exact metrics need all {self._size} columns, found {self._column}; "
                f"spend {self.minimum} products"
            )
        return Moments(self._traces, (self._inner + self._inner.T) / 2)


class ExactFactorRun:
    """tr K = ‖M‖²_F from every column of a factor M: J or Jᵀ, products of one mode alone.

    Args:
        factor: M; as many products as it has columns.
        report: Called with (columns done, columns in all).
    """

    quantum = 1
    stride = math.inf

    def __init__(self, factor: Map, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        self._factor = factor
        self._report = report
        self._column = 0
        self._trace = 0.0
        self.minimum = factor.shape[1]

    def grow(self, products: int) -> None:
        """Take columns until ``products`` have run in all."""
        end = min(products, self.minimum)
        while self._column < end:
            stop = min(self._column + _ROWS, end)
            self._trace += float(self._factor.squares(self._factor.identity(self._column, stop)).sum())
            self._column = stop
            self._report(stop, self.minimum)

    def result(self) -> Estimate:
        """The exact trace; a ValueError while columns are missing."""
        if self._column < self.minimum:
            raise ValueError(f"the exact trace needs {self.minimum} products, found {self._column}; go on")
        return Estimate(self._trace, 0.0, "exact", "trace")
