"""Exact kernels in tiles over the samples of all processes: each pair of processes meets once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ntkscope.engines.torch.memory import take_half
from ntkscope.engines.torch.processes.exchange import Exchange
from ntkscope.engines.torch.samples.tiles import (
    RowBlock,
    SampleRows,
    in_step,
    inner,
    kernel_inner_products,
    side_by_side,
    tile_of,
)
from ntkscope.operators.space import Small

__all__ = ["spread_dense", "spread_inner_products"]


def spread_inner_products(
    sources: Sequence[SampleRows], exchange: Exchange, budget: int, report: Callable[[int, int], None]
) -> tuple[Small, Small]:
    """As :func:`ntkscope.engines.torch.samples.tiles.kernel_inner_products`, of all processes' samples.

    Args:
        sources: This process's rows of every kernel.
        exchange: Between the processes.
        budget: Bytes to keep blocks in.
        report: Called with (done, in all).
    """
    sources = [source for source in in_step(sources) if isinstance(source, SampleRows)]
    traces, totals = exchange.run(lambda: kernel_inner_products(sources, budget, report))
    for met in _across(sources, exchange, budget):
        pairs = zip(met.ours, met.theirs, strict=True)
        tiles = [tile_of(left, right).double() for left, right in pairs]
        for a, tile in enumerate(tiles):
            for b in range(a + 1):
                part = 2 * inner(tile, tiles[b])
                totals[a, b] += part
                totals[b, a] += part * (a != b)
    return exchange.total(traces), exchange.total(np.ascontiguousarray(totals))


def spread_dense(source: SampleRows, own: Tensor, n: int, exchange: Exchange, budget: int) -> Tensor:
    """K itself, shape (n, n), on every process, in float64.

    Args:
        source: This process's rows.
        own: Where its state stands in that of all samples, shape (n_r,).
        n: Size of that.
        exchange: Between the processes.
        budget: Bytes to keep blocks in.
    """
    kernel = torch.zeros(n, n, dtype=torch.float64, device=own.device)
    blocks = [block for (block,) in side_by_side([source], 0)]
    for i, left in enumerate(blocks):
        for right in blocks[: i + 1]:
            _enter(kernel, left, right, own)
    places = exchange.objects(own.cpu())
    for met in _across([source], exchange, budget):
        _enter(kernel, met.ours[0], met.theirs[0], own, places[met.rank].to(own.device))
    return exchange.sum(kernel)


def _enter(kernel: Tensor, left: RowBlock, right: RowBlock, own: Tensor, other: Tensor | None = None) -> None:
    tile = tile_of(left, right).flatten(0, 1).flatten(1).double()
    rows = own[left.index.reshape(-1).to(own.device)]
    columns = (own if other is None else other)[right.index.reshape(-1).to(own.device)]
    if left is right:
        tile = (tile + tile.T) / 2
    kernel[rows.unsqueeze(1), columns] = tile
    kernel[columns.unsqueeze(1), rows] = tile.T


@dataclass(frozen=True)
class _Meeting:
    """The same two blocks of every kernel, one of this process and one of another.

    Attributes:
        ours: This process's.
        theirs: The other's.
        rank: Its rank.
    """

    ours: list[RowBlock]
    theirs: list[RowBlock]
    rank: int


def _panel(sources: Sequence[SampleRows], start: int, budget: int) -> list[list[RowBlock]]:
    """This process's blocks from one on, as many as may be kept; none after the last one."""
    rest = side_by_side(sources, start) if start < len(sources[0]) else iter(())
    return take_half(rest, lambda blocks: sum(block.bytes for block in blocks), budget)


def _across(sources: Sequence[SampleRows], exchange: Exchange, budget: int) -> Iterator[_Meeting]:
    """Pairs of blocks of this process with others' blocks; every two processes' blocks meet at one of them.

    Process r multiplies its blocks with those of r + 1, ..., r + W/2. At the distance W/2 two processes see
    each other's, and each takes half of the pairs.
    """
    world, rank = exchange.size, exchange.rank
    counts = exchange.objects(len(sources[0]))
    start = 0
    while world > 1:
        panel = exchange.run(functools.partial(_panel, sources, start, budget))
        waiting = exchange.objects(len(panel))
        if not any(waiting):
            return
        for distance in range(1, world // 2 + 1):
            to, source = (rank - distance) % world, (rank + distance) % world
            sends = side_by_side(sources, 0) if waiting[to] else None
            most = max(counts[rank] if waiting[to] else 0, counts[source] if panel else 0)
            for number in range(most):
                gives = sends is not None and number < counts[rank]
                takes = bool(panel) and number < counts[source]
                block = None if sends is None or not gives else next(sends)
                theirs = exchange.pass_on(block, to if gives else None, source if takes else None)
                for place, ours in enumerate(panel if takes else [], start):
                    if 2 * distance < world or (place + number + (rank > source)) % 2:
                        yield _Meeting(ours, theirs, source)
        start += len(panel)
