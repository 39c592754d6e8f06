"""Gradients of every sample for probes that are added to, and their inner products around a ring."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.base import layer_of
from ntkscope.engines.torch.gradients.factors import Direct, Factor, Outer
from ntkscope.engines.torch.gradients.sides import Features, Lookup, widened
from ntkscope.engines.torch.graph.groups import Group
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.linearization import Gradient
from ntkscope.operators.space import Small

__all__ = ["ProbedGradients", "Rows", "Sides", "cut_factor", "partners"]


class ProbedGradients:
    """J_bᵀz_{b,i} of every sample b for a few probes i, kept by parameter group.

    Args:
        jacobian: The samples.
    """

    def __init__(self, jacobian: SampleJacobian) -> None:
        self._jacobian = jacobian
        self._parts: list[tuple[range, dict[Group, Factor]]] = []
        self._probes = 0

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self._jacobian.batch

    @property
    def batches(self) -> tuple[int, ...]:
        """(B,): the samples come at once."""
        return (self.batch,)

    @property
    def size(self) -> int:
        """N, the size of the state."""
        return self._jacobian.batch * self._jacobian.outputs

    @property
    def epsilon(self) -> float:
        """Relative rounding error of the products."""
        return float(torch.finfo(self._jacobian.function.dtype).eps)

    def add(self, signs: NDArray[Any]) -> None:
        """More probes, of shape (n, k)."""
        fresh = [
            (part, {g.group: self.settled(g.factor) for g in gradients})
            for part, gradients in self.pulled(signs)
        ]
        self.extend(fresh, signs.shape[1])

    def pulled(self, signs: NDArray[np.int8]) -> Iterator[tuple[range, list[Gradient]]]:
        """The gradients of some probes, part by part of the samples."""
        jacobian = self._jacobian
        function = jacobian.function
        z = jacobian.axes.to_samples(torch.from_numpy(signs.T).to(function.device, function.dtype))
        for part, linear in jacobian.linearizations(jacobian.batch):
            yield part, linear.pull(z[:, part.start : part.stop])
        jacobian.ledger.add(vjps=signs.shape[1])

    def by_layer(self) -> dict[str, ProbedGradients]:
        """The same of each module's own parameters, as :meth:`ntkscope.runs.ring.ProbedSamples.by_layer`."""
        found: dict[str, ProbedGradients] = {}
        for name, groups in self._layers().items():
            found[name] = copy.copy(self)
            found[name]._parts = [
                (part, {group: factors[group] for group in groups}) for part, factors in self._parts
            ]
        return found

    def _layers(self) -> dict[str, list[Group]]:
        """The groups by the module that holds their first parameter, as the model lists its parameters."""
        place = {name: index for index, name in enumerate(self._jacobian.function.parameters)}
        blocks = self._jacobian.graph.blocks
        named = [
            (blocks.get(group.blocks[0], group.blocks[0]), group)
            for group in dict.fromkeys(group for _, factors in self._parts for group in factors)
        ]
        layers: dict[str, list[Group]] = defaultdict(list)
        for name, group in sorted(named, key=lambda pair: place.get(pair[0], len(place))):
            layers[layer_of(name)].append(group)
        return dict(layers)

    def settled(self, factor: Factor) -> Factor:
        """The form of a factor for the products to come."""
        return factor.settled(partners(self.batch))

    def extend(self, fresh: list[tuple[range, dict[Group, Factor]]], probes: int) -> None:
        """Takes in the gradients of so many more probes."""
        self._parts = fresh if not self._parts else _joined(self._parts, fresh)
        self._probes += probes

    def ring(
        self, order: NDArray[np.int64], block: int, offsets: Sequence[int], room: int
    ) -> Iterator[tuple[int, int, Small]]:
        """Inner products around the ring, as :meth:`ntkscope.runs.ring.ProbedSamples.ring`."""
        ((_, factors),) = self._parts
        blocks, probes = -(-self.batch // block), self._probes
        step = max(1, room // (block * probes) ** 2)
        first = next(iter(factors.values()), None)
        cuts = self.cuts(order, block)
        for offset in offsets:
            for start in range(0, blocks, step):
                count = min(step, blocks - start)
                shape = (count, block, probes, block, probes)
                if first is None:
                    yield offset, start, np.zeros(shape)
                    continue
                total = widened(torch.zeros(shape, dtype=first.dtype, device=first.device))
                for cut in cuts:
                    cut.add(start, offset, total)
                yield offset, start, total.to("cpu", torch.float64).numpy()

    @property
    def probes(self) -> int:
        """How many probes every sample has."""
        return self._probes

    def factors(self) -> list[Factor]:
        """The gradients of every parameter group."""
        ((_, factors),) = self._parts
        return list(factors.values())

    def cuts(self, order: NDArray[np.int64], block: int) -> list[Rows | Sides]:
        """The gradients of every parameter group in blocks of so many samples, in an order."""
        factors = self.factors()
        index = torch.as_tensor(order, device=factors[0].device if factors else None)
        return [cut_factor(factor, index, block) for factor in factors]


def partners(batch: int) -> int:
    """With so many rows every row is multiplied, about."""
    return min(batch, 64) * 4


def _joined(
    old: list[tuple[range, dict[Group, Factor]]], new: list[tuple[range, dict[Group, Factor]]]
) -> list[tuple[range, dict[Group, Factor]]]:
    """The probes of both, one after the other."""
    parts = []
    for (part, ours), (_, theirs) in zip(old, new, strict=True):
        joined: dict[Group, Factor] = {}
        for group, factor in ours.items():
            other = theirs[group]
            if isinstance(factor, Outer) and isinstance(other, Outer):
                both = torch.cat([factor.probe_side, other.probe_side])
                joined[group] = dataclasses.replace(factor, probe_side=both)
            else:
                joined[group] = Direct(torch.cat([factor.rows(), other.rows()]))
        parts.append((part, joined))
    return parts


def _cut(x: Tensor, index: Tensor, block: int) -> Tensor:
    """Samples first (B, ...), in an order, in blocks: (nb, q, ...), the last one filled up with zeros."""
    x = x[index]
    missing = -len(x) % block
    if missing:
        x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
    return x.unflatten(0, (-1, block))


def _around(x: Tensor, start: int, count: int) -> Tensor:
    """So many blocks from ``start`` on; after the last one comes the first."""
    start %= len(x)
    if start + count <= len(x):
        return x[start : start + count]
    return torch.cat([x[start:], x[: start + count - len(x)]])


def _products(x: Tensor, start: int, count: int, offset: int) -> Tensor:
    """Of so many blocks with those at an offset from them; after the last block comes the first."""
    other = (start + offset) % len(x)
    ahead = min(count, len(x) - other)
    products = x[start : start + ahead] @ x[other : other + ahead].mT
    if ahead == count:
        return products
    # The blocks themselves are larger than their products, and stay where they are.
    return torch.cat([products, x[start + ahead : start + count] @ x[: count - ahead].mT])


@dataclass(frozen=True)
class Rows:
    """Formed gradients in blocks, shape (nb, q·k, P)."""

    values: Tensor

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.values.nbytes

    def beside(self, blocks: range, other: Rows, others: range) -> Rows:
        """Some of these blocks, followed by some of others."""
        both = (self.values[blocks.start : blocks.stop], other.values[others.start : others.stop])
        return Rows(torch.cat(both))

    def add(self, start: int, offset: int, total: Tensor) -> None:
        """Adds the products of some blocks with those at an offset."""
        total += _products(self.values, start, len(total), offset).reshape(total.shape)


@dataclass(frozen=True)
class Sides:
    """Outer products in blocks: δ of shape (nb, g, q·k·T, O), a of shape (nb, g, q·T, I), or words."""

    delta: Tensor
    sample: Tensor
    is_lookup: bool
    positions: int

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.delta.nbytes + self.sample.nbytes

    def beside(self, blocks: range, other: Sides, others: range) -> Sides:
        """Some of these blocks, followed by some of others."""
        ours, theirs = slice(blocks.start, blocks.stop), slice(others.start, others.stop)
        delta = torch.cat([self.delta[ours], other.delta[theirs]])
        sample = torch.cat([self.sample[ours], other.sample[theirs]])
        return dataclasses.replace(self, delta=delta, sample=sample)

    def add(self, start: int, offset: int, total: Tensor) -> None:
        """Adds (δ·δ')(a·a') of some blocks, summed over groups and positions."""
        blocks, size, probes = total.shape[:3]
        groups, positions = self.delta.shape[1], self.positions
        deltas = _products(self.delta, start, blocks, offset)
        deltas = deltas.reshape(blocks, groups, size, probes, positions, size, probes, positions)
        if self.is_lookup:
            words, other = self.sample[start : start + blocks], _around(self.sample, start + offset, blocks)
            grams = (words[:, :, None] == other[:, None, :]).to(deltas.dtype).unsqueeze(1)
        else:
            grams = _products(self.sample, start, blocks, offset)
        grams = grams.reshape(blocks, -1, size, 1, positions, size, 1, positions)
        if groups == positions == 1:
            total.addcmul_(deltas[:, 0, :, :, 0, :, :, 0], grams[:, 0, :, :, 0, :, :, 0].expand_as(total))
        else:
            total += deltas.mul_(grams).sum((1, 4, 7))


def cut_factor(factor: Factor, index: Tensor, block: int) -> Rows | Sides:
    """A factor's samples in an order, in blocks of so many; the last one is filled up with zeros."""
    if not isinstance(factor, Outer):
        return Rows(_cut(widened(factor.rows()).transpose(0, 1), index, block).flatten(1, 2))
    delta = _cut(widened(factor.probe_side).transpose(0, 1), index, block).movedim(3, 1).flatten(2, 4)
    side, positions = factor.sample_side, factor.probe_side.shape[3]
    if isinstance(side, Lookup):
        return Sides(delta.contiguous(), _cut(side.index, index, block).flatten(1), True, positions)
    assert isinstance(side, Features)
    sample = _cut(widened(side.values), index, block).movedim(2, 1).flatten(2, 3)
    return Sides(delta.contiguous(), sample.contiguous(), False, positions)
