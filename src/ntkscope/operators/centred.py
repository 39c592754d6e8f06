"""A kernel with its samples' mean taken out, HKH with H = I - 11ᵀ/B along one axis of the state."""

from __future__ import annotations

from typing import Any

import array_api_compat

from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Block, Map, Small

__all__ = ["CentredMap", "centred"]


def centred(block: Any, shape: tuple[int, ...], axis: int) -> Any:
    """Columns less their mean along an axis of the state.

    Args:
        block: Shape (n,) or (n, k), of any array-API library.
        shape: The state's, with n entries.
        axis: Of the state.
    """
    xp = array_api_compat.array_namespace(block)
    laid_out = xp.reshape(block, (*shape, *block.shape[1:]))
    return xp.reshape(laid_out - xp.mean(laid_out, axis=axis, keepdims=True), block.shape)


class CentredMap:
    """HKH of a kernel K.

    Args:
        kernel: K, shape (n, n).
        shape: The state's.
        axis: Along which the mean is taken out, from 0.
    """

    def __init__(self, kernel: Map, shape: tuple[int, ...], axis: int) -> None:
        self._kernel = kernel
        self._where = (shape, axis)
        self.shape = kernel.shape
        self.epsilon = kernel.epsilon
        self.probes = kernel.probes
        self.identity = kernel.identity
        self.gram = kernel.gram
        self.inner = kernel.inner
        self.outer = kernel.outer
        self.combine = kernel.combine
        self.concat = kernel.concat

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """The kernel's."""
        return self._kernel.ledgers

    def apply(self, block: Block) -> Block:
        """H(K(H X)); a product of K for every column."""
        return centred(self._kernel.apply(centred(block, *self._where)), *self._where)

    def squares(self, block: Block) -> Small:
        """Squared lengths of the products, shape (k,)."""
        product = self.apply(block)
        return self.inner(product, product)
