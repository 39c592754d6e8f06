"""Maps that are made of maps: products, K = JJᵀ, and whatever a caller brings."""

from __future__ import annotations

from typing import Any

from ntkscope.operators.arrays import ArrayMap
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Block, Factor, Map, Small

__all__ = ["CrossMap", "KernelOfFactor", "ProductMap", "as_factor", "as_map"]


class ProductMap:
    """A B as one map: every product costs one of A and one of B.

    Args:
        first: A, shape (n, m).
        second: B, shape (m, k).
    """

    def __init__(self, first: Map, second: Map) -> None:
        self._first = first
        self._second = second
        self.shape = (first.shape[0], second.shape[1])
        self.epsilon = max(first.epsilon, second.epsilon)
        self.probes = second.probes
        self.identity = second.identity
        self.gram = first.gram
        self.inner = first.inner
        self.outer = first.outer
        self.combine = first.combine
        self.concat = first.concat

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """Those of both maps."""
        return (*self._first.ledgers, *self._second.ledgers)

    def apply(self, block: Block) -> Block:
        """A (B X)."""
        return self._first.apply(self._second.apply(block))

    def squares(self, block: Block) -> Small:
        """Squared lengths of A (B X), column by column."""
        return self._first.squares(self._second.apply(block))


class KernelOfFactor(ProductMap):
    """K = JJᵀ of a factor J: a product of K counts as one, besides what J and Jᵀ enter.

    Args:
        factor: J, shape (n, p).
    """

    def __init__(self, factor: Factor) -> None:
        super().__init__(factor, factor.T)
        self._ledger = factor.ledgers[0]

    def apply(self, block: Block) -> Block:
        """J (Jᵀ X)."""
        self._ledger.add(products=int(block.shape[1]))
        return super().apply(block)


class CrossMap(ProductMap):
    """K₁₂ = J₁J₂ᵀ of two factors: a product counts as one of the first one's, besides what both enter.

    Args:
        first: J₁, shape (n₁, p).
        second: J₂, shape (n₂, p).
    """

    def __init__(self, first: Factor, second: Factor) -> None:
        super().__init__(first, second.T)
        self._factors = first, second

    @property
    def T(self) -> CrossMap:
        """K₂₁ = J₂J₁ᵀ."""
        first, second = self._factors
        return CrossMap(second, first)

    def apply(self, block: Block) -> Block:
        """J₁ (J₂ᵀ X)."""
        self._factors[0].ledgers[0].add(products=int(block.shape[1]))
        return super().apply(block)


def as_factor(operator: Any) -> Factor | None:
    """J of an operator that offers it: an engine's map, or a ``jacobian`` of its own; else ``None``."""
    engine = getattr(operator, "engine", None)
    if engine is not None:
        factor: Factor = engine.map()
        return factor
    own = getattr(operator, "jacobian", None)
    if own is None:
        return None
    return own if isinstance(own, Factor) else ArrayMap(own)


def as_map(operator: Any) -> Map:
    """The operator as a :class:`~ntkscope.operators.space.Map`.

    Args:
        operator: A map, which is itself; an NTK; an array of any array-API library, or anything
            else with ``shape`` and ``@``.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it is not two-dimensional, is empty, or is complex.
    """
    engine = getattr(operator, "engine", None)
    if engine is not None:
        kernel: Map = engine.kernel_map()
        return kernel
    return operator if isinstance(operator, Map) else ArrayMap(operator)
