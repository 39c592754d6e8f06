"""The samples of a model with hooks on its layers, by parts of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.torch.hooks.gradients import Hooked
from ntkscope.engines.torch.hooks.probed import HookedProbes, RingPlaces
from ntkscope.engines.torch.hooks.shares import InParts
from ntkscope.engines.torch.hooks.squares import Squares
from ntkscope.engines.torch.hooks.tiles import Tiles, tile_products
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Small

__all__ = ["HookedParts"]


class HookedParts:
    """As :class:`ntkscope.engines.base.SampleParts`, every pass for all parts.

    Args:
        hooked: The model.
        shares: The parts.
        at_once: Copies of the batch in a pass.
        ledger: Where products are entered.
    """

    def __init__(self, hooked: Hooked, shares: InParts, at_once: int, ledger: Ledger) -> None:
        self._squares = Squares(hooked, shares, at_once, ledger)
        self._tiles = Tiles(hooked, shares, at_once, ledger)
        self._whole = HookedProbes(hooked, at_once, ledger)
        self._shares = shares

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """‖J_bᵀz_b‖² of every part, every z_b on its sphere: (n, k) to (k, B, L)."""
        return self._squares.of(probes)

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every part, by one-hot probes: shape (B, L)."""
        found: Small = np.sum([some.sum(axis=0) for some in self._squares.one_hot(report)], axis=0)
        return found

    def exact_moments(self, others: Sequence[Any], report: Callable[[int, int], None]) -> tuple[Small, Small]:
        """Traces and inner products of all parts, in tiles."""
        return tile_products([one._tiles for one in (self, *others)], report)

    def probed(self) -> Sequence[HookedProbes]:
        """As :meth:`ntkscope.engines.base.SampleParts.probed`."""
        shared = _SharedRing(self._whole, self._shares)
        return [_PartProbes(shared, number) for number in range(self._shares.count)]


class _SharedRing:
    """The inner products of all parts, which are asked for one part after the other."""

    def __init__(self, whole: HookedProbes, shares: InParts) -> None:
        self.whole, self._shares = whole, shares
        self._key: tuple[Any, ...] = ()
        self._found: Small = np.zeros(0)

    def totals(self, number: int, signs: NDArray[Any], ring: RingPlaces) -> Small:
        key = (signs.shape[1], ring.order.tobytes(), ring.block, ring.offsets, ring.step)
        if key != self._key:
            self._found, self._key = self.whole.totals_of(self._shares, signs, ring), key
        found: Small = self._found[number]
        return found


class _PartProbes(HookedProbes):
    """Probes of one part."""

    def __init__(self, shared: _SharedRing, number: int) -> None:
        whole = shared.whole
        super().__init__(whole.hooked, whole.at_once, whole.ledger)
        self._shared, self._number = shared, number

    def totals(self, signs: NDArray[Any], ring: RingPlaces) -> Small:
        """As of the whole."""
        return self._shared.totals(self._number, signs, ring)

    def by_layer(self) -> dict[str, HookedProbes]:
        """Not of parts.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("parts are not split by layer again; ask for by='layer' at once")
