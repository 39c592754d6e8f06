"""The samples of a model with hooks on its layers, as every way to a metric asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.base import Directions, SampleParts
from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.gradients.sides import widened
from ntkscope.engines.torch.hooks.gradients import Group, Hooked
from ntkscope.engines.torch.hooks.probed import HookedProbes
from ntkscope.engines.torch.hooks.products import Meeting, meetings
from ntkscope.engines.torch.probes import one_hot
from ntkscope.engines.torch.processes.factors import gathered
from ntkscope.engines.torch.samples.strata import on_spheres
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Small

__all__ = ["NO_PRODUCTS", "USE_SAMPLES", "HookedSamples"]

#: Why there are no products with J.
NO_PRODUCTS = "hooks on layers give gradients of samples, and no products with the whole Jacobian"

#: The same with the remedy.
USE_SAMPLES = f"{NO_PRODUCTS}; use method='exact' or 'per-sample'"

_NO_PARTS = "partial traces are not there where hooks on layers measure; pass a model that can be traced"


class HookedSamples:
    """The Jacobian of every sample, as :class:`ntkscope.engines.base.Samples` describes it.

    Args:
        hooked: The model, its layers found and checked.
        at_once: Copies of the batch in a pass.
        ledger: Where products are entered.
    """

    def __init__(self, hooked: Hooked, at_once: int, ledger: Ledger) -> None:
        self.hooked, self.at_once, self.ledger = hooked, at_once, ledger

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
        hooked = self.hooked
        z = hooked.own_rows(torch.from_numpy(np.ascontiguousarray(probes.T))).to(hooked.device, hooked.dtype)
        scales = on_spheres(z, None)
        return self._every(self._squares(z) * scales)

    def _squares(self, z: Tensor) -> Tensor:
        """‖J_bᵀz_b‖² of this process's samples: (k, B)."""
        out = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
        for start in range(0, len(z), self.at_once):
            rows = slice(start, start + self.at_once)

            def add(group: Group, factor: Factor, rows: slice = rows) -> None:
                out[rows] += factor.squared_norms()

            self.hooked.pull(z[rows], add)
        self.ledger.add(vjps=len(z))
        return out

    def _every(self, own: Tensor) -> Small:
        """Numbers of this process's samples, (k, B), as those of all."""
        return np.asarray(self.hooked.exchange.gather(own, 1).cpu().numpy(), dtype=np.float64)

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every sample, by one-hot probes."""
        total = torch.zeros(1, self.hooked.batch, dtype=torch.float64, device=self.hooked.device)
        for start in range(0, self.outputs, self.at_once):
            stop = min(start + self.at_once, self.outputs)
            total += self._squares(self._one_hot(list(range(start, stop)))).sum(0)
            report(stop, self.outputs)
        return self._every(total)[0]

    def output_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖∂h_bi/∂θ‖² of every output of every sample, by one-hot probes: shape (B, s)."""
        found = []
        for start in range(0, self.outputs, self.at_once):
            stop = min(start + self.at_once, self.outputs)
            found.append(self._every(self._squares(self._one_hot(list(range(start, stop))))).T)
            report(stop, self.outputs)
        return np.concatenate(found, axis=1)

    def _one_hot(self, outputs: Sequence[int]) -> Tensor:
        """Probes of single outputs, the same for every sample: (k, B, *state of a sample)."""
        hooked = self.hooked
        z = one_hot(torch.tensor(outputs), self.outputs, hooked.dtype, hooked.device)
        return z.unsqueeze(1).expand(-1, hooked.batch, -1).unflatten(2, hooked.axes.state_shape)

    def tiles(self) -> Iterator[tuple[Meeting, Tensor]]:
        """K in tiles: ⟨J_ib, J_jc⟩ of some outputs i, j, and all samples b, c of all processes.

        Shape (k, B, k, B), float64, on every process.
        """
        for meeting in meetings(self.outputs, self.at_once):
            yield meeting, self.hooked.exchange.sum(self._tile(self._one_hot(meeting.probes)))
            self.ledger.add(vjps=len(meeting.probes))

    def _tile(self, z: Tensor) -> Tensor:
        """What the layers make that are this process's."""
        hooked, probes = self.hooked, len(z)
        shape = (probes, self.batch, probes, self.batch)
        total = torch.zeros(shape, dtype=torch.float64, device=z.device)

        def consume(group: Group, factor: Factor) -> None:
            whole = gathered(hooked.exchange, hooked.owners[group], factor)
            if whole is not None:
                whole = whole.settled(self.batch * probes)
                part = widened(torch.zeros(shape, dtype=whole.dtype, device=z.device))
                whole.add_tile(whole, part)
                total.add_(part)

        hooked.pull(z, consume)
        return total

    def exact_moments(self, others: Sequence[Any], report: Callable[[int, int], None]) -> tuple[Small, Small]:
        """Traces and inner products in tiles."""
        kernels = [self, *others]
        at_once = min(samples.at_once for samples in kernels)
        alike = [HookedSamples(samples.hooked, at_once, samples.ledger) for samples in kernels]
        traces, inner = np.zeros(len(kernels)), np.zeros((len(kernels), len(kernels)))
        done = 0
        for pieces in zip(*(samples.tiles() for samples in alike), strict=True):
            fresh = pieces[0][0].fresh.to(self.hooked.device, torch.float64)[:, None, :, None]
            tiles = [tile for _, tile in pieces]
            for a, tile in enumerate(tiles):
                traces[a] += float(torch.einsum("ibib->", tile * fresh))
                for b, other in enumerate(tiles[: a + 1]):
                    inner[a, b] += float((tile * other * fresh).sum())
            done += int(pieces[0][0].fresh.sum())
            report(done, self.outputs**2)
        return traces, inner + np.tril(inner, -1).T

    def dense(self) -> Tensor:
        """K itself, shape (n, n), on every process."""
        n = self.batch * self.outputs
        index = torch.from_numpy(self.state_index()).to(self.hooked.device)
        kernel = torch.zeros(n, n, dtype=torch.float64, device=self.hooked.device)
        for meeting, tile in self.tiles():
            rows = index[:, meeting.probes].T.reshape(-1)
            kernel[rows.unsqueeze(1), rows] = tile.flatten(0, 1).flatten(1)
        return ((kernel + kernel.T) / 2).to(self.hooked.dtype)

    def probed(self) -> HookedProbes:
        """As :meth:`ntkscope.engines.base.Samples.probed`."""
        return HookedProbes(self.hooked, self.at_once, self.ledger)

    # What hooks do not give.

    def forward_squares(self, count: int, directions: Directions) -> Small:
        """Not by hooks.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(USE_SAMPLES)

    @property
    def direction_size(self) -> int:
        """As :meth:`forward_squares`."""
        raise NotImplementedError(USE_SAMPLES)

    def in_parts(self, parts: Mapping[str, int]) -> SampleParts:
        """None, by hooks."""
        raise ValueError(
            "splits are not there where hooks on layers measure; pass a model that can be traced"
        )

    def grams(self, probes: NDArray[np.int8], rows: int, *, across: bool) -> Small:
        """None, by hooks."""
        raise ValueError(_NO_PARTS)

    def output_grams(
        self, outputs: NDArray[np.int64], *, across: bool, report: Callable[[int, int], None]
    ) -> Small:
        """None, by hooks."""
        raise ValueError(_NO_PARTS)

    def forward(self, count: int, directions: Directions) -> Small:
        """None, by hooks."""
        raise ValueError(_NO_PARTS)

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
        return words
