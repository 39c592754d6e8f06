"""Blocks that grow, with their Gram matrices remembered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Block, Map

__all__ = ["Grams"]

Small = NDArray[np.float64]


class Grams:
    """Named blocks of columns to which columns are added, and the Gram matrices between them.

    Each pair of pieces is multiplied once, however often its Gram matrix is asked for.

    Args:
        space: Any map whose ``gram``, ``inner`` and ``combine`` fit the blocks.
    """

    def __init__(self, space: Map) -> None:
        self._space = space
        self._pieces: dict[str, list[Block]] = {}
        self._widths: dict[str, list[int]] = {}
        self._known: dict[tuple[str, int, str, int], Small] = {}
        self._diagonals: dict[tuple[str, str, int], Small] = {}

    def append(self, name: str, block: Block, width: int) -> None:
        """Add columns to the right of a block; the first ones make it."""
        if width:
            self._pieces.setdefault(name, []).append(block)
            self._widths.setdefault(name, []).append(width)

    def width(self, name: str) -> int:
        """Number of columns."""
        return sum(self._widths.get(name, []))

    def pieces(self, name: str) -> list[Block]:
        """The pieces that were added, in order."""
        return self._pieces.get(name, [])

    def gram(self, x: str, y: str) -> Small:
        """XᵀY in float64, shape (width of x, width of y)."""
        if not self.width(x) or not self.width(y):
            return np.zeros((self.width(x), self.width(y)))
        rows = [
            [self._piece(x, i, y, j) for j in range(len(self._pieces[y]))]
            for i in range(len(self._pieces[x]))
        ]
        return np.block(rows)

    def inner(self, x: str, y: str) -> Small:
        """The diagonal of XᵀY, for blocks that grew by the same pieces, shape (width,)."""
        pairs = zip(self.pieces(x), self.pieces(y), strict=True)
        parts = [self._inner_piece(x, y, i, *pair) for i, pair in enumerate(pairs)]
        return np.concatenate([np.zeros(0), *parts])

    def _inner_piece(self, x: str, y: str, i: int, left: Block, right: Block) -> Small:
        key = (x, y, i)
        if key not in self._diagonals:
            self._diagonals[key] = self._space.inner(left, right)
        return self._diagonals[key]

    def _piece(self, x: str, i: int, y: str, j: int) -> Small:
        key = (x, i, y, j)
        if key not in self._known:
            mirrored = self._known.get((y, j, x, i))
            self._known[key] = (
                self._space.gram(self._pieces[x][i], self._pieces[y][j]) if mirrored is None else mirrored.T
            )
        return self._known[key]

    def combine(self, x: str, coefficients: Small) -> Block:
        """X @ C, a new block. X must have columns."""
        total, row = None, 0
        for piece, width in zip(self._pieces[x], self._widths[x], strict=True):
            part = self._space.combine(piece, coefficients[row : row + width])
            total = part if total is None else total + part
            row += width
        return total
