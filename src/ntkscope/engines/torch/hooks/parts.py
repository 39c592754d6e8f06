"""The samples of a model with hooks on its layers, by parts of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.torch.hooks.probed import HookedProbes, RingPlaces
from ntkscope.engines.torch.hooks.shares import InParts
from ntkscope.engines.torch.hooks.tiles import tile_products
from ntkscope.operators.space import Small

if TYPE_CHECKING:
    from ntkscope.engines.torch.hooks.samples import HookedSamples

__all__ = ["HookedParts"]


class HookedParts:
    """As :class:`ntkscope.engines.base.SampleParts`, every pass for all parts.

    Args:
        samples: Of the whole.
        shares: The parts.
    """

    def __init__(self, samples: HookedSamples, shares: InParts) -> None:
        self.samples, self.shares = samples, shares

    def squares(self, probes: NDArray[np.float64]) -> Small:
        """‖J_bᵀz_b‖² of every part, every z_b on its sphere: (n, k) to (k, B, L)."""
        z, scales = self.samples.on_spheres(probes)
        return self.samples.every(self.samples.squares_of(self.shares, z) * scales.unsqueeze(2))

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every part, by one-hot probes: shape (B, L)."""
        squares = self.samples.one_hot_squares(self.shares, report)
        found: Small = np.sum([some.sum(axis=0) for some in squares], axis=0)
        return found

    def exact_moments(self, others: Sequence[Any], report: Callable[[int, int], None]) -> tuple[Small, Small]:
        """Traces and inner products of all parts, in tiles."""
        return tile_products([one.samples.tiles(one.shares) for one in (self, *others)], report)

    def probed(self) -> Sequence[HookedProbes]:
        """As :meth:`ntkscope.engines.base.SampleParts.probed`."""
        shared = _SharedRing(self.samples.probed(), self.shares)
        return [_PartProbes(self.samples, shared, number) for number in range(self.shares.count)]


class _SharedRing:
    """The inner products of all parts, which are asked for one part after the other."""

    def __init__(self, whole: HookedProbes, shares: InParts) -> None:
        self._whole, self._shares = whole, shares
        self._key: tuple[Any, ...] = ()
        self._found: Small = np.zeros(0)

    def totals(self, number: int, signs: NDArray[Any], ring: RingPlaces) -> Small:
        key = (signs.shape[1], ring.order.tobytes(), ring.block, ring.offsets, ring.step)
        if key != self._key:
            self._found, self._key = self._whole.totals_of(self._shares, signs, ring), key
        found: Small = self._found[number]
        return found


class _PartProbes(HookedProbes):
    """Probes of one part."""

    def __init__(self, samples: HookedSamples, shared: _SharedRing, number: int) -> None:
        super().__init__(samples.hooked, samples.at_once, samples.ledger)
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
