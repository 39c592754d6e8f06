"""The samples of all processes, each of which has its own, as every way to a metric asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ntkscope.engines.base import Directions, SampleParts
from ntkscope.engines.torch.processes.maps import Places
from ntkscope.engines.torch.processes.probed import SpreadProbes
from ntkscope.engines.torch.processes.rows import spread_inner_products
from ntkscope.engines.torch.samples.parts import PartsOfSamples
from ntkscope.engines.torch.samples.tiles import SampleRows
from ntkscope.engines.torch.samples.traced import TorchSamples
from ntkscope.operators.space import Small

__all__ = ["SpreadSamples"]

_Report = Callable[[int, int], None]


class _Spread:
    """What is known of single samples, brought together.

    Args:
        places: Where this process's samples stand among all.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._exchange = places.exchange

    def _own(self, probes: NDArray[Any]) -> NDArray[Any]:
        """This process's rows of probes over the state of all samples."""
        return np.ascontiguousarray(probes[self._places.own.numpy()])

    def _every(self, work: Callable[[], Small], axis: int) -> Small:
        """Numbers of this process's samples, along an axis, as those of all."""
        own = torch.from_numpy(np.ascontiguousarray(self._exchange.run(work), dtype=np.float64))
        gathered = self._exchange.gather(own.to(self._exchange.device), axis)
        return np.ascontiguousarray(gathered.cpu().numpy())


class SpreadSamples(_Spread):
    """The Jacobian of every sample, as :class:`ntkscope.engines.base.Samples` describes it.

    Args:
        own: This process's samples.
        places: Where they stand among all.
        index: As of :meth:`state_index`.
    """

    def __init__(self, own: TorchSamples, places: Places, index: NDArray[np.int64]) -> None:
        super().__init__(places)
        self.own, self._index = own, index

    @property
    def batch(self) -> int:
        """B, the number of samples of all processes."""
        return self._exchange.batch

    @property
    def outputs(self) -> int:
        """The size of one sample's state."""
        return self.own.outputs

    def state_index(self) -> NDArray[np.int64]:
        """As :meth:`ntkscope.engines.base.Samples.state_index`."""
        return self._index

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """‖J_bᵀz_b‖² for probes of shape (n, k), to (k, B)."""
        return self._every(lambda: self.own.squares(self._own(probes)), 1)

    def forward_squares(self, count: int, directions: Directions) -> Small:
        """‖J_b u_b‖² with a direction for every probe and sample: shape (count, B)."""
        return self._every(lambda: self.own.forward_squares(count, self._shifted(directions)), 1)

    def _shifted(self, directions: Directions) -> Directions:
        """Directions for samples that are counted on this process."""
        start = self._exchange.own.start

        def own(probes: range, samples: range) -> NDArray[np.float64]:
            return directions(probes, range(start + samples.start, start + samples.stop))

        return own

    @property
    def direction_size(self) -> int:
        """Length of a sample's direction."""
        return self._exchange.run(lambda: self.own.direction_size)

    def exact_squares(self, report: _Report) -> Small:
        """‖J_b‖²_F of every sample, by one-hot probes."""
        return self._every(lambda: self.own.exact_squares(report), 0)

    def output_squares(self, report: _Report) -> Small:
        """‖∂h_bi/∂θ‖² of every output of every sample: shape (B, s)."""
        return self._every(lambda: self.own.output_squares(report), 0)

    def exact_moments(self, others: Sequence[Any], report: _Report) -> tuple[Small, Small]:
        """Traces and inner products in tiles over the samples of every two processes."""
        sources = [SampleRows(samples.own.jacobian) for samples in (self, *others)]
        return spread_inner_products(sources, self._exchange, self.own.jacobian.budget, report)

    def probed(self) -> SpreadProbes:
        """As :meth:`ntkscope.engines.base.Samples.probed`."""
        return SpreadProbes(self.own.jacobian, self._places)

    def grams(self, probes: NDArray[np.int8], rows: int, *, across: bool) -> Small:
        """As :meth:`ntkscope.engines.base.Samples.grams`, summed over samples."""
        _check_summed(across)
        return self._exchange.total(
            self._exchange.run(lambda: self.own.grams(self._own(probes), rows, across=False))
        )

    def output_grams(self, outputs: NDArray[np.int64], *, across: bool, report: _Report) -> Small:
        """As :meth:`ntkscope.engines.base.Samples.output_grams`, summed over samples."""
        _check_summed(across)
        return self._exchange.total(
            self._exchange.run(lambda: self.own.output_grams(outputs, across=False, report=report))
        )

    def in_parts(self, parts: Mapping[str, int]) -> SampleParts:
        """The same by parts of the parameters."""
        return _SpreadParts(self.own.in_parts(parts), self._places)

    def forward(self, count: int, directions: Directions) -> Small:
        """J_b u_b with a direction for every probe and sample: shape (count, n)."""
        own = self._exchange.run(lambda: self.own.forward(count, self._shifted(directions)))
        rows = torch.from_numpy(np.ascontiguousarray(own.T)).to(self._exchange.device)
        return np.ascontiguousarray(self._places.joined(rows).cpu().numpy().T)

    def is_comparable(self, other: Any) -> bool:
        """Whether the other's samples lie along the same axes of the state, on the same processes."""
        if not isinstance(other, SpreadSamples) or self._exchange.counts != other._exchange.counts:
            return False
        return all(self._exchange.objects(self.own.is_comparable(other.own)))

    def describe(self) -> str:
        """What is known of the model, in words."""
        exchange = self._exchange
        return (
            f"{self.batch:,} samples on {exchange.size:,} processes, of which this one has: "
            + self.own.describe()
        )


class _SpreadParts(_Spread):
    """J_b of every sample by parts of the parameters."""

    def __init__(self, own: PartsOfSamples, places: Places) -> None:
        super().__init__(places)
        self._parts = own

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """As :meth:`ntkscope.engines.base.SampleParts.squares`: (n, k) to (k, B, L)."""
        return self._every(lambda: self._parts.squares(self._own(probes)), 1)

    def exact_squares(self, report: _Report) -> Small:
        """‖J_b‖²_F of every part: shape (B, L)."""
        return self._every(lambda: self._parts.exact_squares(report), 0)

    def exact_moments(self, others: Sequence[Any], report: _Report) -> tuple[Small, Small]:
        """None, of samples on several processes."""
        raise ValueError(_NO_PAIRS)

    def probed(self) -> Any:
        """None, of samples on several processes."""
        raise ValueError(_NO_PAIRS)


_NO_PAIRS = (
    "norms and alignments of parts are not there for samples on several processes; "
    "measure on one of them, or split the trace"
)


def _check_summed(across: bool) -> None:
    if across:
        raise ValueError(
            "partial traces that keep the axis of samples are not there for samples on several processes; "
            "measure on one of them, or keep other axes"
        )
