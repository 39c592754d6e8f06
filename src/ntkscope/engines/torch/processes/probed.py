"""Gradients of all processes' samples for random probes, and their inner products around a ring."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Outer
from ntkscope.engines.torch.gradients.sides import widened
from ntkscope.engines.torch.processes.factors import gathered
from ntkscope.engines.torch.processes.maps import Places
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.probed import ProbedGradients, Rows, Sides, cut_factor, partners
from ntkscope.operators.space import Small

__all__ = ["SpreadProbes"]

# With so many parameter groups for each process they are given out whole, one after the other.
_MANY = 4


class SpreadProbes:
    """J_bᵀz_{b,i} as :class:`ntkscope.runs.ring.ProbedSamples`, over the samples of all processes.

    Kernels add over parameters, and so do inner products: each process has a share of the parameters
    and multiplies the gradients of all samples within it, and the sums of these go to all of them.

    Args:
        jacobian: This process's samples.
        places: Where they stand among all.
    """

    def __init__(self, jacobian: SampleJacobian, places: Places) -> None:
        self._own = _AsTheyCome(jacobian)
        self._places = places
        self._dtype = jacobian.function.dtype
        self._outputs = jacobian.outputs

    @property
    def batch(self) -> int:
        """B, the number of samples of all processes."""
        return self._places.exchange.batch

    @property
    def batches(self) -> tuple[int, ...]:
        """(B,): the samples come at once."""
        return (self.batch,)

    @property
    def size(self) -> int:
        """N, the size of the state."""
        return self._places.n

    @property
    def epsilon(self) -> float:
        """Relative rounding error of the products."""
        return float(torch.finfo(self._dtype).eps)

    def add(self, signs: NDArray[Any]) -> None:
        """More probes over the state of all samples, of shape (n, k)."""
        own = np.ascontiguousarray(signs[self._places.own.numpy()])
        self._places.exchange.run(lambda: self._own.add(own))

    def by_layer(self) -> Mapping[str, SpreadProbes]:
        """The same of each module's own parameters."""
        found = {}
        for name, own in self._own.by_layer().items():
            found[name] = SpreadProbes.__new__(SpreadProbes)
            found[name].__dict__.update(self.__dict__, _own=own)
        return found

    def ring(
        self, order: NDArray[np.int64], block: int, offsets: Sequence[int], room: int
    ) -> Iterator[tuple[int, int, Small]]:
        """As :meth:`ntkscope.runs.ring.ProbedSamples.ring`."""
        exchange, device = self._places.exchange, self._places.device
        blocks, probes = -(-self.batch // block), self._own.probes
        index = torch.as_tensor(order, device=device)
        cuts = [cut_factor(factor, index, block) for factor in self._share()]
        step = max(1, room // (block * probes) ** 2)
        dtype = self._wide(cuts)
        for offset in offsets:
            for start in range(0, blocks, step):
                shape = (min(step, blocks - start), block, probes, block, probes)
                total = exchange.sum(_tile(cuts, start, offset, shape, device, dtype))
                yield offset, start, total.to("cpu", torch.float64).numpy()

    def _wide(self, cuts: Sequence[Rows | Sides]) -> torch.dtype:
        """In which all processes add up: float64 where one of them has gradients in that."""
        values = [cut.values if isinstance(cut, Rows) else cut.delta for cut in cuts]
        own = any(value.dtype == torch.float64 for value in values)
        return torch.float64 if any(self._places.exchange.objects(own)) else torch.float32

    def _share(self) -> list[Factor]:
        """This process's share of the parameters, with all samples' gradients in it."""
        exchange = self._places.exchange
        world, found = exchange.size, []
        factors = self._own.factors()
        for number, factor in enumerate(factors):
            pieces = _slices(factor, world) if len(factors) < _MANY * world else []
            if not pieces:
                pieces = [(number % world, factor)]
            for rank, piece in pieces:
                whole = gathered(exchange, rank, piece)
                if whole is not None:
                    found.append(whole.settled(partners(self.batch)))
        return found


class _AsTheyCome(ProbedGradients):
    """Those of one process; in which form they are multiplied is chosen when all are together."""

    def settled(self, factor: Factor) -> Factor:
        """As it is: other processes' gradients may be better served by another form."""
        return factor


def _slices(factor: Factor, world: int) -> list[tuple[int, Factor]]:
    """A factor in a piece for each process, by its parameter's entries; none if it has too few."""
    if isinstance(factor, Outer):
        outputs = factor.probe_side.shape[4]
        if outputs < world:
            return []
        # Inner products do not ask how the entries lie in memory.
        plain = dataclasses.replace(factor, transposed=False, order=None)
        parts = factor.probe_side.tensor_split(world, dim=4)
        return [(r, dataclasses.replace(plain, probe_side=part)) for r, part in enumerate(parts)]
    if isinstance(factor, Direct) and factor.row_size() >= world:
        return [(r, Direct(part)) for r, part in enumerate(factor.values.tensor_split(world, dim=2))]
    return []


def _tile(
    cuts: Sequence[Rows | Sides],
    start: int,
    offset: int,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Inner products of blocks within this process's share."""
    total = torch.zeros(shape, dtype=dtype, device=device)
    for cut in cuts:
        values = cut.values if isinstance(cut, Rows) else cut.delta
        if widened(values).dtype == dtype:
            cut.add(start, offset, total)
            continue
        part = torch.zeros(shape, dtype=widened(values).dtype, device=device)
        cut.add(start, offset, part)
        total += part
    return total
