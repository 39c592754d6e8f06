"""How estimators see a linear map: through blocks of columns, and through nothing else.

An estimator never looks inside a block. It asks the map for random probes, for
products, and for small Gram matrices, which come back as float64 NumPy arrays.
So one text of each estimator serves NumPy, torch, JAX, and blocks that are
sharded over devices.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.ledger import Ledger

__all__ = ["Block", "Factor", "Map", "Small"]

#: A block of columns, shape (size, k). It supports ``+``, ``-`` and ``* scalar``.
Block: TypeAlias = Any
#: A small matrix on the host, in float64.
Small: TypeAlias = NDArray[np.float64]


@runtime_checkable
class Map(Protocol):
    """A linear map on blocks of columns.

    Attributes:
        shape: (rows, columns): a block of shape (columns, k) goes to one of (rows, k).
        epsilon: The relative rounding error of the products.
        ledgers: Where its products are entered.
    """

    shape: tuple[int, int]
    epsilon: float

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """Where its products are entered; those of its parts, if it is made of several."""
        ...

    def probes(self, start: int, stop: int, *, seed: int, stream: int) -> Block:
        """Columns start..stop-1 of the random probes of (seed, stream), shape (columns, k).

        They are uniform on the sphere of radius √columns, each independent of all others.
        """
        ...

    def identity(self, start: int, stop: int) -> Block:
        """Columns start..stop-1 of the identity, shape (columns, k)."""
        ...

    def apply(self, block: Block) -> Block:
        """The products with every column; k products."""
        ...

    def squares(self, block: Block) -> Small:
        """Squared lengths of the products with every column, which are not kept: shape (k,)."""
        ...

    def gram(self, x: Block, y: Block) -> Small:
        """XᵀY in float64, shape (k_x, k_y)."""
        ...

    def inner(self, x: Block, y: Block) -> Small:
        """The diagonal of XᵀY in float64: inner products column by column, shape (k,)."""
        ...

    def combine(self, x: Block, coefficients: Small) -> Block:
        """X @ C, new columns from old ones."""
        ...

    def concat(self, blocks: list[Block]) -> Block:
        """The blocks side by side."""
        ...

    def outer(self, x: Block, y: Block) -> Small:
        """XYᵀ in float64, for blocks with few rows: shape (rows of X, rows of Y)."""
        ...


@runtime_checkable
class Factor(Map, Protocol):
    """J of a kernel K = JJᵀ: a map that can be turned."""

    @property
    def T(self) -> Factor:
        """Jᵀ, whose products are entered in the same ledger."""
        ...
