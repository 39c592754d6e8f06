"""Exact kernels in tiles: Frobenius inner products of kernels, and K itself, in bounded memory.

K = JJᵀ splits into tiles K_IJ = J_I J_Jᵀ for blocks I, J of its rows. A block of rows is
kept as factors by layer, and a tile comes from two blocks by matrix products; nothing of
size n² is kept.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Factor
from ntkscope.engines.torch.jacobian import Jacobian
from ntkscope.engines.torch.memory import DEFAULT_BUDGET, take_half
from ntkscope.engines.torch.probes import one_hot
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.linearization import Gradient, Linearization
from ntkscope.errors import said

__all__ = [
    "BlockSource",
    "CutSource",
    "RowBlock",
    "SampleRows",
    "WholeRows",
    "check_range",
    "dense_kernel",
    "in_step",
    "inner",
    "kernel_inner_products",
    "side_by_side",
    "tile_of",
]

# Rows in a block: tiles of this many rows squared stay in a processor's caches.
_ROWS = 1024


@dataclass(frozen=True)
class RowBlock:
    """Some rows of J: probes × samples.

    Attributes:
        index: Position in the flattened state of each row, shape (k, B).
        factors: The rows, by parameter group.
    """

    index: Tensor
    factors: list[Factor]

    @property
    def bytes(self) -> int:
        """Memory that the rows take."""
        return sum(factor.nbytes for factor in self.factors)


class BlockSource(Protocol):
    """The rows of one kernel's J, block by block."""

    @property
    def dtype(self) -> torch.dtype:
        """The state's."""
        ...

    def __len__(self) -> int: ...

    def blocks(self, start: int, stop: int) -> Iterator[RowBlock]:
        """Blocks start..stop-1, computed anew."""
        ...


@runtime_checkable
class CutSource(BlockSource, Protocol):
    """A source whose blocks may be of another size.

    Attributes:
        rows: Rows in a block, about.
    """

    rows: int

    def with_rows(self, rows: int) -> BlockSource:
        """The same rows in blocks of so many."""
        ...


class SampleRows:
    """Rows by the per-sample structure, in factors by layer.

    Args:
        jacobian: The per-sample Jacobian.
        rows: Rows in a block.
    """

    def __init__(self, jacobian: SampleJacobian, rows: int = _ROWS) -> None:
        self._jacobian = jacobian
        positions = max((factor_positions(use.tap_shape) for use in jacobian.graph.uses), default=1)
        self.rows = max(1, rows // min(positions, 8))
        self._index = jacobian.axes.state_index()
        self._cut(self.rows)

    def _cut(self, rows: int) -> None:
        """Plans blocks of so many rows."""
        jacobian = self._jacobian
        self._outputs = min(jacobian.outputs, rows)
        self._samples = max(1, min(jacobian.batch, rows // self._outputs))
        starts = range(0, jacobian.batch, self._samples)
        self._plan = [
            (
                range(b, min(b + self._samples, jacobian.batch)),
                range(i, min(i + self._outputs, jacobian.outputs)),
            )
            for b in starts
            for i in range(0, jacobian.outputs, self._outputs)
        ]

    def with_rows(self, rows: int) -> SampleRows:
        """The same rows in blocks of so many."""
        twin = copy.copy(self)
        twin.rows = rows
        twin._cut(rows)
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """The state's."""
        return self._jacobian.function.dtype

    def __len__(self) -> int:
        return len(self._plan)

    def blocks(self, start: int, stop: int) -> Iterator[RowBlock]:
        """Blocks start..stop-1."""
        for index, gradients in self.gradients(start, stop):
            factors = [self.settled(gradient.factor) for gradient in gradients]
            yield RowBlock(index, factors or [self.nothing(index)])

    def gradients(self, start: int, stop: int) -> Iterator[tuple[Tensor, list[Gradient]]]:
        """Index and gradients of blocks start..stop-1; the samples of consecutive blocks run forward once."""
        linear, current = None, None
        for samples, outputs in self._plan[start:stop]:
            if linear is None or samples != current:
                linear, current = self._jacobian.linearize(samples), samples
            index = self._index[samples.start : samples.stop, outputs.start : outputs.stop].T
            yield index, self._gradients(linear, samples, outputs)

    def settled(self, factor: Factor) -> Factor:
        """The form of a factor for products with all other rows."""
        return factor.settled(self._jacobian.batch * self._jacobian.outputs)

    def nothing(self, index: Tensor) -> Factor:
        """Rows of zeros, of what no parameter reaches."""
        return Direct(self._jacobian.function.state.new_zeros(*index.shape, 1))

    def _gradients(self, linear: Linearization, samples: range, outputs: range) -> list[Gradient]:
        jacobian = self._jacobian
        state, places = linear.state, torch.arange(outputs.start, outputs.stop)
        probes = one_hot(places, jacobian.outputs, state.dtype, state.device)
        block = probes.unsqueeze(1).expand(-1, len(samples), -1)
        jacobian.ledger.add(vjps=len(outputs) * len(samples) / jacobian.batch)
        return linear.pull(block)


def factor_positions(tap_shape: tuple[int, ...]) -> int:
    """A guess at the number of positions of a use: all axes of its output but the largest."""
    return int(np.prod(tap_shape) // max(tap_shape, default=1)) if tap_shape else 1


class WholeRows:
    """Rows by reverse products with the whole batch: for coupled samples.

    Args:
        jacobian: The Jacobian.
        rows: Rows in a block.
    """

    def __init__(self, jacobian: Jacobian, rows: int = 256) -> None:
        self._jacobian = jacobian
        self._rows = rows

    @property
    def dtype(self) -> torch.dtype:
        """The state's."""
        return self._jacobian.function.dtype

    def __len__(self) -> int:
        return -(-self._jacobian.shape[0] // self._rows)

    def blocks(self, start: int, stop: int) -> Iterator[RowBlock]:
        """Blocks start..stop-1."""
        n, function = self._jacobian.shape[0], self._jacobian.function
        for number in range(start, stop):
            index = torch.arange(number * self._rows, min((number + 1) * self._rows, n))
            probes = one_hot(index, n, function.dtype, function.device)
            rows = Direct(self._jacobian.vjp(probes).unsqueeze(1))
            yield RowBlock(index.unsqueeze(1), [rows.settled(n)])


def kernel_inner_products(
    sources: Sequence[BlockSource],
    budget: int = DEFAULT_BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Traces tr K_a and products ⟨K_a, K_b⟩_F of m kernels on one state: shapes (m,) and (m, m), float64.

    Args:
        sources: The kernels' rows.
        budget: Bytes to keep blocks in; those that do not fit are computed again.
        progress: Called with (tiles done, tiles in all).
    """
    sources = in_step(sources)
    totals = np.zeros((len(sources), len(sources)))
    traces = np.zeros(len(sources))
    count = len(sources[0])
    done = 0

    def add(lefts: list[RowBlock], rights: list[RowBlock], weight: int) -> None:
        nonlocal done
        # Squares of entries leave the range of float32 long before these do.
        tiles = [tile_of(left, right).double() for left, right in zip(lefts, rights, strict=True)]
        for a, tile in enumerate(tiles):
            if weight == 1:
                traces[a] += float(tile.flatten(0, 1).flatten(1).diagonal().sum())
            for b in range(a + 1):
                totals[a, b] += weight * inner(tile, tiles[b])
        done += 1
        if progress is not None:
            progress(done, count * (count + 1) // 2)

    for panel, followers in _panels(sources, budget):
        for number, lefts in enumerate(panel):
            for other in range(number + 1):
                add(lefts, panel[other], 1 if other == number else 2)
        for rights in followers:
            for lefts in panel:
                add(lefts, rights, 2)
    return traces, np.tril(totals) + np.tril(totals, -1).T


def in_step(sources: Sequence[BlockSource]) -> list[BlockSource]:
    """The sources with the same rows in each block: the smallest that any of them would take."""
    rows = min((source.rows for source in sources if isinstance(source, CutSource)), default=0)
    return [source.with_rows(rows) if isinstance(source, CutSource) else source for source in sources]


def dense_kernel(source: BlockSource, n: int, budget: int = DEFAULT_BUDGET) -> Tensor:
    """K itself, shape (n, n), in the state's dtype.

    Raises:
        ValueError: If an entry is beyond the range of that dtype.
    """
    kernel: Tensor | None = None
    largest = 0.0
    for panel, followers in _panels([source], budget):
        pairs = [(a[0], b[0]) for i, a in enumerate(panel) for b in panel[: i + 1]]
        for left, right in [*pairs, *((a[0], b[0]) for b in followers for a in panel)]:
            exact = tile_of(left, right).flatten(0, 1).flatten(1)
            largest = max(largest, float(exact.abs().amax()))
            tile = exact.to(source.dtype)
            if left is right:
                # Symmetric to the last bit, as the other tiles make it.
                tile = (tile + tile.T) / 2
            rows, columns = left.index.reshape(-1), right.index.reshape(-1)
            kernel = tile.new_zeros(n, n) if kernel is None else kernel
            kernel[rows.unsqueeze(1), columns] = tile
            kernel[columns.unsqueeze(1), rows] = tile.T
    assert kernel is not None
    check_range(largest, source.dtype)
    return kernel


def check_range(largest: float, dtype: torch.dtype) -> None:
    """Refuses a kernel whose largest entry is beyond the range of its dtype.

    Raises:
        ValueError: If it is.
    """
    limits = torch.finfo(dtype)
    if largest == 0 or limits.tiny <= largest <= limits.max:
        return
    raise ValueError(
        f"the largest entry of the kernel is {largest:.3g}, beyond the range of {dtype}; bring model and "
        f"inputs to a wider dtype ({said('model.double()', '--dtype float64')}), or scale the state "
        f"({said('outputs=', 'in the factory')})"
    )


def _panels(
    sources: Sequence[BlockSource], budget: int
) -> Iterator[tuple[list[list[RowBlock]], Iterator[list[RowBlock]]]]:
    """Blocks that fit the budget together, and an iterator over all blocks after them.

    An entry of a panel holds the same block of every source.
    """
    count, start = len(sources[0]), 0
    while start < count:
        panel = take_half(side_by_side(sources, start), lambda blocks: sum(b.bytes for b in blocks), budget)
        start += len(panel)
        yield panel, side_by_side(sources, start)


def side_by_side(sources: Sequence[BlockSource], start: int) -> Iterator[list[RowBlock]]:
    """From a block on, the same block of every source."""
    for blocks in zip(*(source.blocks(start, len(sources[0])) for source in sources), strict=True):
        yield list(blocks)


def tile_of(left: RowBlock, right: RowBlock) -> Tensor:
    """⟨J_i, J_j⟩ for the rows of two blocks: shape (k, B, k′, B′)."""
    shape = (*left.index.shape, *right.index.shape)
    dtypes = [factor.dtype for factor in (*left.factors, *right.factors)]
    dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
    total = torch.zeros(shape, dtype=dtype, device=left.factors[0].device)
    for ours, theirs in zip(left.factors, right.factors, strict=True):
        ours.add_tile(theirs, total)
    return total


def inner(a: Tensor, b: Tensor) -> float:
    """The Frobenius inner product of two tiles."""
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
