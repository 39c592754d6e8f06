"""Frobenius inner products of exact kernels, tile by tile; where a run is kept in a file, as they grow."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.torch.memory import DEFAULT_BUDGET, take_half
from ntkscope.engines.torch.samples.tiles import BlockSource, CutSource, RowBlock, side_by_side, tile_of
from ntkscope.journal import begin

__all__ = ["in_step", "inner", "kernel_inner_products"]

_Blocks = list[RowBlock]


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
    sums = _Sums(len(sources), len(sources[0]), progress)
    while sums.start < len(sources[0]):
        panel = _panel(sources, sums.start, sums.length, budget)
        sums.length = len(panel)
        for number in range(sums.step, len(panel)):
            for other in range(number + 1):
                sums.add(panel[number], panel[other], 1 if other == number else 2)
            sums.stepped()
        followers = sums.start + len(panel) + (sums.step - len(panel))
        for rights in side_by_side(sources, followers) if followers < len(sources[0]) else ():
            for lefts in panel:
                sums.add(lefts, rights, 2)
            sums.stepped()
        sums.start, sums.length, sums.step = sums.start + len(panel), 0, 0
    return sums.result()


def _panel(sources: Sequence[BlockSource], start: int, length: int, budget: int) -> list[_Blocks]:
    """Blocks that fit the budget together, or as many as there were."""
    blocks = side_by_side(sources, start)
    if length:
        return list(itertools.islice(blocks, length))
    return take_half(blocks, lambda some: sum(block.bytes for block in some), budget)


class _Sums:
    """Traces and inner products, and how far they have come.

    Attributes:
        start: The first block of the panel, whose blocks are kept while all later ones come by.
        length: Blocks in it; 0 while it is not known.
        step: Rows of tiles within the panel, and then of later blocks, that are done.
    """

    def __init__(self, kernels: int, blocks: int, progress: Callable[[int, int], None] | None) -> None:
        self._traces, self._totals = np.zeros(kernels), np.zeros((kernels, kernels))
        self._blocks, self._progress = blocks, progress
        self._tiles = 0
        self.start = self.length = self.step = 0
        self._task = begin("tiles")
        if self._task is not None and self._task.known is not None:
            known = self._task.known
            self._traces, self._totals = known["traces"].copy(), known["totals"].copy()
            self.start, self.length, self.step, self._tiles = known["place"].tolist()

    def add(self, lefts: _Blocks, rights: _Blocks, weight: int) -> None:
        """The same tile of every kernel, which stands for itself or for its transpose as well."""
        # Squares of entries leave the range of float32 long before these do.
        tiles = [tile_of(left, right).double() for left, right in zip(lefts, rights, strict=True)]
        for a, tile in enumerate(tiles):
            if weight == 1:
                self._traces[a] += float(tile.flatten(0, 1).flatten(1).diagonal().sum())
            for b in range(a + 1):
                self._totals[a, b] += weight * inner(tile, tiles[b])
        self._tiles += 1
        if self._progress is not None:
            self._progress(self._tiles, self._blocks * (self._blocks + 1) // 2)

    def stepped(self) -> None:
        """Notes that a row of tiles is done."""
        self.step += 1
        if self._task is not None and self._task.is_due():
            self._keep(done=False)

    def _keep(self, *, done: bool) -> None:
        assert self._task is not None
        place = np.array([self.start, self.length, self.step, self._tiles])
        self._task.save({"traces": self._traces, "totals": self._totals, "place": place}, done=done)

    def result(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both, when all tiles are done."""
        if self._task is not None and not self._task.is_done:
            self._keep(done=True)
        return self._traces, np.tril(self._totals) + np.tril(self._totals, -1).T


def in_step(sources: Sequence[BlockSource]) -> list[BlockSource]:
    """The sources with the same rows in each block: the smallest that any of them would take."""
    rows = min((source.rows for source in sources if isinstance(source, CutSource)), default=0)
    return [source.with_rows(rows) if isinstance(source, CutSource) else source for source in sources]


def inner(a: Tensor, b: Tensor) -> float:
    """The Frobenius inner product of two tiles."""
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
