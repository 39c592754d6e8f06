"""Squared norms of every sample's gradients, layer by layer, by parts of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.hooks.gradients import Group, Hooked
from ntkscope.engines.torch.hooks.shares import Shares
from ntkscope.engines.torch.hooks.tiles import one_hot_probes
from ntkscope.engines.torch.samples.strata import on_spheres
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Small

__all__ = ["Squares"]


@dataclass(frozen=True)
class Squares:
    """‖J_bᵀz_b‖² of every sample and every part of the parameters.

    Attributes:
        hooked: The model.
        shares: The L parts.
        at_once: Copies of the batch in a pass.
        ledger: Where products are entered.
    """

    hooked: Hooked
    shares: Shares
    at_once: int
    ledger: Ledger

    def of(self, probes: NDArray[np.floating[Any]]) -> Small:
        """For probes of shape (n, k), every z_b on its sphere, to (k, B, L)."""
        hooked = self.hooked
        z = hooked.own_rows(torch.from_numpy(np.ascontiguousarray(probes.T))).to(hooked.device, hooked.dtype)
        scales = on_spheres(z, None)
        return self._every(self._own(z) * scales.unsqueeze(2))

    def one_hot(self, report: Callable[[int, int], None]) -> Iterator[Small]:
        """‖∂h_bi/∂θ‖² of some outputs i at a time: shape (k, B, L)."""
        outputs = self.hooked.outputs
        for start in range(0, outputs, self.at_once):
            stop = min(start + self.at_once, outputs)
            yield self._every(self._own(one_hot_probes(self.hooked, range(start, stop))))
            report(stop, outputs)

    def _own(self, z: Tensor) -> Tensor:
        """Of this process's samples: (k, B, L)."""
        out = torch.zeros(*z.shape[:2], self.shares.count, dtype=torch.float64, device=z.device)
        for start in range(0, len(z), self.at_once):
            rows = slice(start, start + self.at_once)

            def add(group: Group, factor: Factor, rows: slice = rows) -> None:
                for number, own in self.shares.of(group, factor):
                    out[rows, :, number] += own.squared_norms()

            self.hooked.pull(z[rows], add)
        self.ledger.add(vjps=len(z))
        return out

    def _every(self, own: Tensor) -> Small:
        """Numbers of this process's samples as those of all."""
        return np.asarray(self.hooked.exchange.gather(own, 1).cpu().numpy(), dtype=np.float64)
