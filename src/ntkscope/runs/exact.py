"""Exact moments: products with every column of the identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ntkscope.operators.space import Map
from ntkscope.results import Estimate
from ntkscope.runs.grams import Grams
from ntkscope.runs.moments import Moments

__all__ = ["ExactFactorRun", "ExactGramRun", "ExactRun"]

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


class ExactGramRun:
    """tr K_a and ⟨K_a, K_b⟩ by reverse mode alone: K_a = X_aᵀX_a with X_a = J_aᵀ times the identity.

    Uses n products a kernel and keeps them, as random probes in their place would be.

    Args:
        reverse_maps: J_aᵀ, c maps of shape (p_a, n).
    """

    quantum = 1
    stride = math.inf

    def __init__(self, reverse_maps: Sequence[Map]) -> None:
        self._maps = reverse_maps
        self._size = reverse_maps[0].shape[1]
        self._grams = [Grams(operator) for operator in reverse_maps]
        self.minimum = len(reverse_maps) * self._size

    def grow(self, products: int) -> None:
        """Take columns until ``products`` have run in all."""
        end = min(products // len(self._maps), self._size)
        for operator, grams in zip(self._maps, self._grams, strict=True):
            for start in range(grams.width("X"), end, _TILE):
                stop = min(start + _TILE, end)
                grams.append("X", operator.apply(operator.identity(start, stop)), stop - start)

    def result(self) -> Moments:
        """The exact moments; a ValueError while columns are missing."""
        known = min(grams.width("X") for grams in self._grams)
        if known < self._size:
            raise ValueError(
                f"exact metrics need all {self._size} columns, found {known}; spend {self.minimum} products"
            )
        kernels = np.array([grams.gram("X", "X") for grams in self._grams])
        return Moments(np.trace(kernels, axis1=1, axis2=2), np.einsum("aij,bij->ab", kernels, kernels))
