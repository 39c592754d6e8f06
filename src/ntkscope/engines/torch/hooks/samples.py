"""The samples of a model with hooks on its layers, as every way to a metric asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.base import Directions
from ntkscope.engines.torch.hooks.gradients import Hooked
from ntkscope.engines.torch.hooks.parts import HookedParts
from ntkscope.engines.torch.hooks.probed import HookedProbes
from ntkscope.engines.torch.hooks.products import meetings
from ntkscope.engines.torch.hooks.shares import InParts, Whole
from ntkscope.engines.torch.hooks.squares import Squares
from ntkscope.engines.torch.hooks.tiles import Tiles, one_hot_probes, tile_products
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Small

__all__ = ["NO_DIRECTIONS", "NO_PRODUCTS", "USE_SAMPLES", "HookedSamples"]

#: Why there are no products with J.
NO_PRODUCTS = "hooks on layers give gradients of samples, and no products with the whole Jacobian"

#: Why a sample has no directions of its own over the parameters.
NO_DIRECTIONS = "hooks on layers give gradients of samples, and no forward products of them"

#: The same with the remedy.
USE_SAMPLES = f"{NO_PRODUCTS}; use method='exact' or 'per-sample'"

_NO_FORWARD = f"{NO_DIRECTIONS}; use method='exact' or 'per-sample'"


class HookedSamples:
    """The Jacobian of every sample, as :class:`ntkscope.engines.base.Samples` describes it.

    Args:
        hooked: The model, its layers found and checked.
        at_once: Copies of the batch in a pass.
        ledger: Where products are entered.

    Attributes:
        reason: Why the model is not traced, where that was tried.
    """

    def __init__(self, hooked: Hooked, at_once: int, ledger: Ledger) -> None:
        self.hooked, self.at_once, self.ledger = hooked, at_once, ledger
        self.reason = ""

    @property
    def batch(self) -> int:
        """B, the number of samples of all processes."""
        return self.hooked.exchange.batch

    @property
    def outputs(self) -> int:
        """The size of one sample's state."""
        return self.hooked.outputs

    def state_index(self) -> NDArray[np.int64]:
        """As :meth:`ntkscope.engines.base.Samples.state_index`."""
        every = dataclasses.replace(self.hooked.axes, batch=self.batch)
        return np.asarray(every.state_index().numpy(), dtype=np.int64)

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """‖J_bᵀz_b‖² for probes of shape (n, k), every z_b on its sphere, to (k, B)."""
        found: Small = self._squares().of(probes)[..., 0]
        return found

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every sample, by one-hot probes."""
        found: Small = np.sum([some.sum(axis=(0, 2)) for some in self._squares().one_hot(report)], axis=0)
        return found

    def output_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖∂h_bi/∂θ‖² of every output of every sample, by one-hot probes: shape (B, s)."""
        return np.concatenate([some[..., 0].T for some in self._squares().one_hot(report)], axis=1)

    def _squares(self) -> Squares:
        return Squares(self.hooked, Whole(), self.at_once, self.ledger)

    def _tiles(self) -> Tiles:
        return Tiles(self.hooked, Whole(), self.at_once, self.ledger)

    def exact_moments(self, others: Sequence[Any], report: Callable[[int, int], None]) -> tuple[Small, Small]:
        """Traces and inner products in tiles."""
        return tile_products([samples._tiles() for samples in (self, *others)], report)

    def dense(self) -> Tensor:
        """K itself, shape (n, n), on every process."""
        n = self.batch * self.outputs
        index = torch.from_numpy(self.state_index()).to(self.hooked.device)
        kernel = torch.zeros(n, n, dtype=torch.float64, device=self.hooked.device)
        for meeting, (tile,) in self._tiles():
            rows = index[:, meeting.probes].T.reshape(-1)
            kernel[rows.unsqueeze(1), rows] = tile.flatten(0, 1).flatten(1)
        return ((kernel + kernel.T) / 2).to(self.hooked.dtype)

    def probed(self) -> HookedProbes:
        """As :meth:`ntkscope.engines.base.Samples.probed`."""
        return HookedProbes(self.hooked, self.at_once, self.ledger)

    # In parts.

    def grams(self, probes: NDArray[np.int8], rows: int, *, across: bool) -> Small:
        """As :meth:`ntkscope.engines.base.Samples.grams`."""
        hooked = self.hooked
        z = hooked.own_rows(torch.from_numpy(np.ascontiguousarray(probes.T))).to(hooked.device, hooked.dtype)
        return np.stack([_parts(self._pairs(part), across) for part in z.split(rows)])

    def output_grams(
        self, outputs: NDArray[np.int64], *, across: bool, report: Callable[[int, int], None]
    ) -> Small:
        """As :meth:`ntkscope.engines.base.Samples.output_grams`."""
        total: Small = np.zeros(())
        for column in range(outputs.shape[1]):
            z = one_hot_probes(self.hooked, outputs[:, column].tolist())
            total = total + _parts(self._pairs(z), across)
            report(column + 1, outputs.shape[1])
        return total

    def _pairs(self, z: Tensor) -> Tensor:
        """Inner products of all pairs of probes and samples, (k, B, k, B), on every process."""
        probes = len(z)
        total = torch.zeros(probes, self.batch, probes, self.batch, dtype=torch.float64, device=z.device)
        tiles = self._tiles()
        for meeting in meetings(probes, self.at_once):
            (tile,) = tiles.of(z[meeting.probes])
            for row, i in enumerate(meeting.probes):
                total[i][:, meeting.probes] = tile[row]
        return total

    def in_parts(self, parts: Mapping[str, int]) -> HookedParts:
        """The samples by parts of their parameters."""
        return HookedParts(self.hooked, InParts(self.hooked, parts), self.at_once, self.ledger)

    # What hooks do not give.

    def forward_squares(self, count: int, directions: Directions) -> Small:
        """Not by hooks.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(_NO_FORWARD)

    @property
    def direction_size(self) -> int:
        """As :meth:`forward_squares`."""
        raise NotImplementedError(_NO_FORWARD)

    def forward(self, count: int, directions: Directions) -> Small:
        """As :meth:`forward_squares`."""
        raise NotImplementedError(_NO_FORWARD)

    def is_comparable(self, other: Any) -> bool:
        """Whether the other's samples lie along the same axes of the state, on the same processes."""
        if not isinstance(other, HookedSamples):
            return False
        ours, theirs = self.hooked, other.hooked
        return (ours.exchange.counts, ours.axes.state_axis, ours.axes.state_shape) == (
            theirs.exchange.counts,
            theirs.axes.state_axis,
            theirs.axes.state_shape,
        )

    def describe(self) -> str:
        """What is known of the model, in words."""
        hooked = self.hooked
        words = (
            f"{self.batch:,} independent samples with {self.outputs:,} outputs each, by hooks on "
            f"{len(hooked.layers):,} layers and the model's own backward pass"
        )
        if hooked.exchange.size > 1:
            words += f", on {hooked.exchange.size:,} processes with {hooked.batch:,} samples here"
        return f"{words}: {self.reason}" if self.reason else words


def _parts(pairs: Tensor, across: bool) -> Small:
    """Inner products of pairs with samples as rows, or summed over samples."""
    return np.asarray((pairs if across else torch.einsum("ibjb->ij", pairs)).cpu().numpy())
