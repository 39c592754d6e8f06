"""Maps that are centred over the samples: H J, Jᵀ H and H K H with H = I - 11ᵀ/B for each output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Block, Map, Small

__all__ = ["CenteredMap", "Centre", "centre_over"]

#: Takes from every entry of a block's columns its mean over the samples.
Centre: TypeAlias = Callable[[Block], Block]


def centre_over(index: NDArray[np.int64]) -> Centre:
    """H for blocks of columns over a state, of whatever framework.

    Args:
        index: Position in the state of every output of every sample, shape (B, s).
    """
    place = np.empty(index.size, dtype=np.int64)
    place[index] = np.arange(index.shape[1])

    def of_whole(block: Block) -> Block:
        return block - block[index].mean(0)[place]

    def centre(block: Block) -> Block:
        # Of a block of which each process has a part, the means are those of all parts.
        in_parts = getattr(block, "through_whole", None)
        return of_whole(block) if in_parts is None else in_parts(of_whole)

    return centre


class CenteredMap:
    """A map with H before it, after it, or both.

    Args:
        inner: J, Jᵀ or K.
        before: H where its columns are states, else ``None``.
        after: H where its products are states, else ``None``.
    """

    def __init__(self, inner: Map, before: Centre | None, after: Centre | None) -> None:
        self._inner, self._before, self._after = inner, before, after
        self.shape, self.epsilon = inner.shape, inner.epsilon
        self.probes, self.identity = inner.probes, inner.identity
        self.gram, self.inner, self.outer = inner.gram, inner.inner, inner.outer
        self.combine, self.concat = inner.combine, inner.concat

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """Those of the map."""
        return self._inner.ledgers

    @property
    def T(self) -> CenteredMap:
        """The transpose, of a map that has one."""
        turned: Any = self._inner
        return CenteredMap(turned.T, self._after, self._before)

    def apply(self, block: Block) -> Block:
        """The products with every column."""
        product = self._inner.apply(block if self._before is None else self._before(block))
        return product if self._after is None else self._after(product)

    def squares(self, block: Block) -> Small:
        """Squared lengths of the products with every column."""
        if self._after is None:
            return self._inner.squares(block if self._before is None else self._before(block))
        product = self.apply(block)
        return self.inner(product, product)
