"""Random probes of every sample and their inner products around a ring, summed up layer by layer."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.base import layer_of
from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.gradients.sides import widened
from ntkscope.engines.torch.hooks.gradients import Group, Hooked
from ntkscope.engines.torch.hooks.products import meetings
from ntkscope.engines.torch.processes.factors import gathered
from ntkscope.engines.torch.samples.probed import cut_factor, partners
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Small

__all__ = ["HookedProbes"]


class HookedProbes:
    """J_bᵀz_{b,i} as :class:`ntkscope.runs.ring.ProbedSamples`; the passes run when a ring asks for them.

    A layer's gradients are reduced to their inner products when they have come, and let go: what is kept
    grows with the pairs of samples that are wanted, and not with the parameters.

    Args:
        hooked: The model.
        at_once: Copies of the batch in a pass.
        ledger: Where products are entered.
        only: The parameters that are wanted, by group.
    """

    def __init__(
        self, hooked: Hooked, at_once: int, ledger: Ledger, only: frozenset[Group] | None = None
    ) -> None:
        self._hooked, self._at_once, self._ledger, self._only = hooked, at_once, ledger, only
        self._signs: list[NDArray[Any]] = []

    @property
    def batch(self) -> int:
        """B, the number of samples of all processes."""
        return self._hooked.exchange.batch

    @property
    def batches(self) -> tuple[int, ...]:
        """(B,): the samples come at once."""
        return (self.batch,)

    @property
    def size(self) -> int:
        """N, the size of the state."""
        return self.batch * self._hooked.outputs

    @property
    def epsilon(self) -> float:
        """Relative rounding error of the products."""
        return float(torch.finfo(self._hooked.dtype).eps)

    def add(self, signs: NDArray[Any]) -> None:
        """More probes, of shape (n, k)."""
        self._signs.append(signs)

    def by_layer(self) -> dict[str, HookedProbes]:
        """The same of each module's own parameters; each runs the passes for itself."""
        layers: dict[str, set[Group]] = defaultdict(set)
        for group in self._hooked.uses:
            layers[layer_of(group[0])].add(group)
        place = list(self._hooked.passes.parameters)
        found = {}
        for name in sorted(layers, key=lambda name: min(place.index(group[0]) for group in layers[name])):
            twin = HookedProbes(self._hooked, self._at_once, self._ledger, frozenset(layers[name]))
            twin._signs = list(self._signs)
            found[name] = twin
        return found

    def ring(
        self, order: NDArray[np.int64], block: int, offsets: Sequence[int], room: int
    ) -> Iterator[tuple[int, int, Small]]:
        """Inner products around the ring, as :meth:`ntkscope.runs.ring.ProbedSamples.ring`.

        A layer's gradients of all samples come together at one process, each layer's at its own, and only
        the sums over layers go to all of them.
        """
        signs = np.concatenate(self._signs, axis=1)
        blocks, probes = -(-self.batch // block), signs.shape[1]
        step = max(1, room // (block * probes) ** 2)
        totals = self._totals(signs, _Ring(order, block, tuple(offsets), blocks, step))
        for place, offset in enumerate(offsets):
            for start in range(0, blocks, step):
                yield offset, start, totals[place, start : start + step].copy()

    def _totals(self, signs: NDArray[Any], ring: _Ring) -> Small:
        """All of them, shape (offsets, blocks, q, k, q, k)."""
        hooked, exchange = self._hooked, self._hooked.exchange
        z = hooked.own_rows(torch.from_numpy(np.ascontiguousarray(signs.T))).to(hooked.device, hooked.dtype)
        probes = len(z)
        shape = (len(ring.offsets), ring.blocks, ring.block, probes, ring.block, probes)
        totals = torch.zeros(shape, dtype=torch.float64, device=hooked.device)
        for meeting in meetings(probes, self._at_once):
            found = self._of_pass(z[meeting.probes], ring)
            # One after the other, so that a pair that meets again is written again, not added.
            for row, i in enumerate(meeting.probes):
                totals[:, :, :, i, :, meeting.probes] = found[:, :, :, row]
            self._ledger.add(vjps=len(meeting.probes))
        return np.asarray(exchange.sum(totals).cpu().numpy())

    def _of_pass(self, z: Tensor, ring: _Ring) -> Tensor:
        """Those of the probes of one pass, of this process's layers."""
        hooked = self._hooked
        shape = (ring.block, len(z), ring.block, len(z))
        totals = torch.zeros(
            len(ring.offsets), ring.blocks, *shape, dtype=torch.float64, device=hooked.device
        )
        index = torch.as_tensor(ring.order, device=hooked.device)

        def consume(group: Group, factor: Factor) -> None:
            whole = gathered(hooked.exchange, hooked.owners[group], factor)
            if whole is None:
                return
            whole = whole.settled(partners(self.batch))
            cut = cut_factor(whole, index, ring.block)
            dtype = widened(torch.zeros((), dtype=whole.dtype)).dtype
            for place, offset in enumerate(ring.offsets):
                for start in range(0, ring.blocks, ring.step):
                    stop = min(start + ring.step, ring.blocks)
                    part = torch.zeros(stop - start, *shape, dtype=dtype, device=hooked.device)
                    cut.add(start, offset, part)
                    totals[place, start:stop] += part

        hooked.pull(z, consume, self._only)
        return totals


@dataclasses.dataclass(frozen=True)
class _Ring:
    """Which pairs of blocks are multiplied.

    Attributes:
        order: The samples.
        block: Places in a block.
        offsets: Between the blocks of a pair.
        blocks: Their number.
        step: Blocks at a time.
    """

    order: NDArray[np.int64]
    block: int
    offsets: tuple[int, ...]
    blocks: int
    step: int
