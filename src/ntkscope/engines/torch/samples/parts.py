"""The samples' gradients in parts: by groups of parameters, or output by output."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Outer
from ntkscope.engines.torch.gradients.sides import Features
from ntkscope.engines.torch.graph.groups import Group, group_shape
from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.graph.pieces import jobs
from ntkscope.engines.torch.samples.grams import Outputs
from ntkscope.engines.torch.samples.inner_products import kernel_inner_products
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.linearization import Gradient
from ntkscope.engines.torch.samples.probed import ProbedGradients
from ntkscope.engines.torch.samples.strata import on_spheres
from ntkscope.engines.torch.samples.tiles import (
    BlockSource,
    RowBlock,
    SampleRows,
)
from ntkscope.operators.space import Small

__all__ = ["PartsOfSamples", "columns_of", "output_squares", "split_gradient"]

#: The number of the part that each parameter belongs to, by its name.
Parts = Mapping[str, int]


def split_gradient(graph: Graph, gradient: Gradient, parts: Parts) -> Iterator[tuple[int, Gradient]]:
    """The gradient of a group of parameters, as those of the parts that it belongs to."""
    owners = [graph.blocks.get(block, block) for block in gradient.group.blocks]
    numbers = [parts[owner] for owner in owners]
    if len(set(numbers)) == 1:
        yield numbers[0], gradient
        return
    # A weight and its bias, as one outer product: for each output, the features of all side by side.
    group, outputs = gradient.group, group_shape(graph, gradient.group).outputs
    use, roles = graph.uses[group.uses[0][0]], group.uses[0][1]
    widths = [max(1, use.constants[role].shape.numel() // outputs) for role in roles]
    pieces = columns_of(gradient.factor, widths)
    by_block = dict(zip((use.parameters[role] for role in roles), pieces, strict=True))
    for block, number in zip(group.blocks, numbers, strict=True):
        yield number, Gradient(Group((block,), group.uses), by_block[block])


def columns_of(factor: Factor, widths: Sequence[int]) -> list[Factor]:
    """A factor of (outputs, features) as those of some of its features each."""
    if isinstance(factor, Outer):
        dense = factor.sample_side.dense(factor.dtype).split(list(widths), dim=3)
        return [dataclasses.replace(factor, sample_side=Features(part)) for part in dense]
    rows = factor.rows()
    parts = rows.unflatten(2, (-1, sum(widths))).split(list(widths), dim=3)
    return [Direct(part.flatten(2)) for part in parts]


def part_squares(jacobian: SampleJacobian, z: Tensor, parts: Parts, count: int) -> Tensor:
    """‖J_bᵀz_b‖² of every part: probes (k, n) to (k, B, parts), in float64."""

    def work() -> Tensor:
        blocks = jacobian.axes.to_samples(z)
        out = torch.zeros(len(z), jacobian.batch, count, dtype=torch.float64, device=z.device)
        samples, probes = jacobian.portions(len(z))
        for part, linear in jacobian.linearizations(samples):
            for start in range(0, len(z), probes):
                rows = slice(start, min(start + probes, len(z)))
                for gradient in linear.pull(blocks[rows, part.start : part.stop]):
                    for number, own in split_gradient(jacobian.graph, gradient, parts):
                        out[rows, part.start : part.stop, number] += own.factor.squared_norms()
        return out

    found = jacobian.portioned(work, jacobian.outputs)
    jacobian.ledger.add(vjps=len(z))
    return found


def exact_part_squares(
    jacobian: SampleJacobian, parts: Parts, count: int, report: Callable[[int, int], None]
) -> Tensor:
    """‖J_b‖²_F of every part: shape (B, parts), in float64, by s one-hot probes."""

    def work() -> Tensor:
        done = 0
        out = torch.zeros(jacobian.batch, count, dtype=torch.float64, device=jacobian.function.device)
        samples, probes = jacobian.portions(jacobian.outputs)
        for part, linear in jacobian.linearizations(samples):
            for job in jobs(jacobian.graph.pieces, probes):
                for gradient in linear.pull_pieces(job):
                    for number, own in split_gradient(jacobian.graph, gradient, parts):
                        norms = own.factor.squared_norms().sum(0, dtype=torch.float64)
                        out[part.start : part.stop, number] += norms
                done += sum(len(entries) for _, entries in job) * len(part)
                report(done, jacobian.outputs * jacobian.batch)
        return out

    found = jacobian.portioned(work, jacobian.outputs)
    jacobian.ledger.add(vjps=jacobian.outputs)
    return found


def output_squares(jacobian: SampleJacobian, report: Callable[[int, int], None]) -> Tensor:
    """‖∂h_bi/∂θ‖² of every output: shape (B, s), in float64, by s one-hot probes."""

    def work() -> Tensor:
        shape = (jacobian.batch, jacobian.outputs)
        out = torch.zeros(shape, dtype=torch.float64, device=jacobian.function.device)
        samples, probes = jacobian.portions(jacobian.outputs)
        outputs = Outputs(jacobian)
        for part, linear in jacobian.linearizations(samples):
            for start in range(0, jacobian.outputs, probes):
                chosen = outputs.order[start : start + probes]
                for gradient in outputs.pull(linear, chosen):
                    norms = gradient.factor.squared_norms().double()
                    out[part.start : part.stop, torch.from_numpy(chosen)] += norms.T
                report(part.start * shape[1] + (start + len(chosen)) * len(part), shape[0] * shape[1])
        return out

    found = jacobian.portioned(work, jacobian.outputs)
    jacobian.ledger.add(vjps=jacobian.outputs)
    return found


class PartProbes:
    """Gradients of every sample for a few random probes, pulled back once for all parts.

    Args:
        jacobian: The samples.
        parts: The part of every parameter.
        count: How many parts.
    """

    def __init__(self, jacobian: SampleJacobian, parts: Parts, count: int) -> None:
        self._whole = ProbedGradients(jacobian)
        self._graph, self._map = jacobian.graph, parts
        self._probes = 0
        self.parts = [_PartProbed(self, jacobian) for _ in range(count)]

    def pull(self, signs: NDArray[np.int8], known: int) -> None:
        """More probes for all parts, unless the part that asks has seen fewer than there are."""
        if known < self._probes:
            return
        self._probes += signs.shape[1]
        for part, gradients in self._whole.pulled(signs):
            shares: list[dict[Group, Factor]] = [{} for _ in self.parts]
            for gradient in gradients:
                for number, own in split_gradient(self._graph, gradient, self._map):
                    shares[number][own.group] = self._whole.settled(own.factor)
            for one, share in zip(self.parts, shares, strict=True):
                one.extend([(part, share)], signs.shape[1])


class _PartProbed(ProbedGradients):
    """One part of them."""

    def __init__(self, shared: PartProbes, jacobian: SampleJacobian) -> None:
        super().__init__(jacobian)
        self._shared = shared
        self._seen = 0

    def add(self, signs: NDArray[np.int8]) -> None:
        """More probes, which are pulled back when the first part asks for them."""
        self._shared.pull(signs, self._seen)
        self._seen += signs.shape[1]


def part_rows(jacobian: SampleJacobian, rows: int | None, parts: Parts, count: int) -> list[BlockSource]:
    """The rows of J of every part, pulled back once for all of them where they are read side by side.

    Args:
        jacobian: The samples.
        rows: Rows in a block; chosen if ``None``.
        parts: The part of every parameter.
        count: How many parts.
    """
    whole = SampleRows(jacobian)
    shared = _SharedRows(whole if rows is None else whole.with_rows(rows), jacobian.graph, parts, count)
    return [_PartRows(shared, number) for number in range(count)]


class _SharedRows:
    def __init__(self, rows: SampleRows, graph: Graph, parts: Parts, count: int) -> None:
        self.rows, self._graph, self._parts, self._count = rows, graph, parts, count
        self._branches: list[Iterator[list[RowBlock]]] = []

    def branch(self, number: int, start: int, stop: int) -> Iterator[list[RowBlock]]:
        """The blocks of all parts, for one that reads in step with the others."""
        if number == 0:
            self._branches = list(itertools.tee(self._split(start, stop), self._count))
        return self._branches[number]

    def _split(self, start: int, stop: int) -> Iterator[list[RowBlock]]:
        for block, gradients in self.rows.gradients(start, stop):
            shares: list[list[Factor]] = [[] for _ in range(self._count)]
            for gradient in gradients:
                for number, own in split_gradient(self._graph, gradient, self._parts):
                    shares[number].append(self.rows.settled(own.factor))
            yield [RowBlock(block, share or [self.rows.nothing(block)]) for share in shares]


class _PartRows:
    """The rows of one part, as :class:`ntkscope.engines.torch.samples.tiles.BlockSource`."""

    def __init__(self, shared: _SharedRows, number: int) -> None:
        self._shared, self._number = shared, number

    @property
    def dtype(self) -> torch.dtype:
        """The state's."""
        return self._shared.rows.dtype

    def __len__(self) -> int:
        return len(self._shared.rows)

    def blocks(self, start: int, stop: int) -> Iterator[RowBlock]:
        """Blocks start..stop-1, of which all parts' are made together."""
        branch = self._shared.branch(self._number, start, stop)
        return (blocks[self._number] for blocks in branch)


class PartsOfSamples:
    """Samples by parts of their parameters, as :class:`ntkscope.engines.base.SampleParts` describes them.

    Args:
        jacobian: The samples.
        parts: The part of every parameter.
        silent: The strata of the samples' outputs, as :func:`strata_of` gives them.
    """

    def __init__(self, jacobian: SampleJacobian, parts: Parts, silent: Tensor | None = None) -> None:
        self.jacobian = jacobian
        self._silent = silent
        self.parts = parts
        self.count = max(parts.values()) + 1

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """‖J_bᵀz_b‖² of every part, the strata of every z_b on their spheres: (n, k) to (k, B, L)."""
        jacobian = self.jacobian
        z = torch.from_numpy(probes.T).to(jacobian.function.device, jacobian.function.dtype)
        scales = on_spheres(jacobian.axes.to_samples(z), self._silent)
        return (part_squares(jacobian, z, self.parts, self.count) * scales.unsqueeze(2)).cpu().numpy()

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every part, by one-hot probes: shape (B, L)."""
        found = exact_part_squares(self.jacobian, self.parts, self.count, report)
        return found.cpu().numpy()

    def exact_moments(self, others: Sequence[Any], report: Callable[[int, int], None]) -> tuple[Small, Small]:
        """Traces and inner products of all parts in tiles, by layer factors."""
        kernels = [self, *others]
        rows = min(SampleRows(one.jacobian).rows for one in kernels)
        sources = [
            source for one in kernels for source in part_rows(one.jacobian, rows, one.parts, one.count)
        ]
        return kernel_inner_products(sources, self.jacobian.budget, report)

    def probed(self) -> Sequence[ProbedGradients]:
        """As :meth:`ntkscope.engines.base.SampleParts.probed`."""
        return PartProbes(self.jacobian, self.parts, self.count).parts
