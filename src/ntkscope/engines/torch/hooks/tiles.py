"""Inner products of the gradients of all samples, layer by layer: K in tiles, by parts of the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.gradients.sides import widened
from ntkscope.engines.torch.hooks.gradients import Group, Hooked
from ntkscope.engines.torch.hooks.products import Meeting, meetings
from ntkscope.engines.torch.hooks.shares import Shares
from ntkscope.engines.torch.probes import one_hot
from ntkscope.engines.torch.processes.factors import gathered
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Small

__all__ = ["Tiles", "one_hot_probes", "tile_products"]


def one_hot_probes(hooked: Hooked, outputs: Sequence[int]) -> Tensor:
    """Probes of single outputs, the same for every sample: (k, B, *state of a sample)."""
    z = one_hot(torch.tensor(outputs), hooked.outputs, hooked.dtype, hooked.device)
    return z.unsqueeze(1).expand(-1, hooked.batch, -1).unflatten(2, hooked.axes.state_shape)


@dataclass(frozen=True)
class Tiles:
    """K of every part of the parameters, some outputs against some at a time.

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

    def __iter__(self) -> Iterator[tuple[Meeting, Tensor]]:
        """⟨J_ib, J_jc⟩ of some outputs i, j, and all samples b, c of all processes, on every process.

        Shape (L, k, B, k, B), float64.
        """
        for meeting in meetings(self.hooked.outputs, self.at_once):
            yield meeting, self.of(one_hot_probes(self.hooked, meeting.probes))

    def of(self, z: Tensor) -> Tensor:
        """The same for probes of all samples, from one pass: (L, k, B, k, B)."""
        hooked, probes, batch = self.hooked, len(z), self.hooked.exchange.batch
        shape = (probes, batch, probes, batch)
        total = torch.zeros(self.shares.count, *shape, dtype=torch.float64, device=z.device)

        def consume(group: Group, factor: Factor) -> None:
            whole = gathered(hooked.exchange, hooked.owners[group], factor)
            for number, own in [] if whole is None else self.shares.of(group, whole):
                settled = own.settled(batch * probes)
                part = widened(torch.zeros(shape, dtype=settled.dtype, device=z.device))
                settled.add_tile(settled, part)
                total[number].add_(part)

        hooked.pull(z, consume)
        self.ledger.add(vjps=probes)
        return hooked.exchange.sum(total)


def tile_products(kernels: Sequence[Tiles], report: Callable[[int, int], None]) -> tuple[Small, Small]:
    """Traces (c·L,) and inner products (c·L, c·L) of the parts of c kernels, exactly."""
    count = sum(kernel.shares.count for kernel in kernels)
    # The tiles of all parts are held together.
    fewer = math.sqrt(count / len(kernels))
    at_once = max(1, int(min(kernel.at_once for kernel in kernels) / fewer))
    alike = [Tiles(kernel.hooked, kernel.shares, at_once, kernel.ledger) for kernel in kernels]
    traces, inner = np.zeros(count), np.zeros((count, count))
    outputs, done = kernels[0].hooked.outputs, 0
    for pieces in zip(*alike, strict=True):
        meeting = pieces[0][0]
        tiles = [tile for _, parts in pieces for tile in parts]
        fresh = meeting.fresh.to(tiles[0].device, torch.float64)[:, None, :, None]
        for a, tile in enumerate(tiles):
            once = tile * fresh
            traces[a] += float(torch.einsum("ibib->", once))
            for b, other in enumerate(tiles[: a + 1]):
                inner[a, b] += float((once * other).sum())
        done += int(meeting.fresh.sum())
        report(done, outputs**2)
    return traces, inner + np.tril(inner, -1).T
