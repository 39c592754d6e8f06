"""Exact moments from the rows of J: in tiles of JJᵀ, or by JᵀJ where parameters are few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ntkscope.operators.space import Block, Map
from ntkscope.runs.moments import Moments

__all__ = ["parameter_moments", "row_moments"]

# Rows at a time.
_ROWS = 256

Report = Callable[[int, int], None]


def _blocks(factors: Sequence[Map], start: int) -> Iterator[list[Block]]:
    """Rows of every J, transposed, from block ``start`` on: shape (p, k) each."""
    size = factors[0].shape[1]
    for first in range(start * _ROWS, size, _ROWS):
        stop = min(first + _ROWS, size)
        yield [factor.apply(factor.identity(first, stop)) for factor in factors]


def row_moments(factors: Sequence[Map], budget: int, report: Report) -> Moments:
    """Tr K_a and ⟨K_a, K_b⟩ from tiles (J_I)(J_L)ᵀ of rows of J.

    Args:
        factors: Jᵀ of every kernel, c maps of shape (p, n).
        budget: Bytes to keep rows in; those that do not fit are computed again.
        report: Called with (tiles done, tiles in all).
    """
    count = -(-factors[0].shape[1] // _ROWS)
    traces, inner = np.zeros(len(factors)), np.zeros((len(factors), len(factors)))
    each = sum(8 * factor.shape[0] * _ROWS for factor in factors)
    panel_size = max(1, budget // 2 // each)
    done = 0

    def add(lefts: list[Block], rights: list[Block], weight: int) -> None:
        nonlocal done
        tiles = [factor.gram(left, right) for factor, left, right in zip(factors, lefts, rights, strict=True)]
        for a, tile in enumerate(tiles):
            if weight == 1:
                traces[a] += np.trace(tile)
            for b in range(a + 1):
                with np.errstate(over="ignore"):
                    inner[a, b] += weight * np.sum(tile * tiles[b])
        done += 1
        report(done, count * (count + 1) // 2)

    for start in range(0, count, panel_size):
        panel: list[list[Block]] = []
        for number, blocks in enumerate(_blocks(factors, start)):
            for earlier in panel:
                add(earlier, blocks, 2)
            if number < panel_size:
                add(blocks, blocks, 1)
                panel.append(blocks)
    return Moments(traces, np.tril(inner) + np.tril(inner, -1).T)


def parameter_moments(factors: Sequence[Map], report: Report) -> Moments:
    """Tr K_a = ‖J_a‖²_F and ⟨K_a, K_b⟩ = ‖J_aᵀJ_b‖²_F, with matrices of p_a × p_b numbers kept.

    Args:
        factors: Jᵀ of every kernel, c maps of shape (p_a, n).
        report: Called with (blocks of rows done, blocks in all).
    """
    count = len(factors)
    total = -(-factors[0].shape[1] // _ROWS)
    pairs = [(a, b) for a in range(count) for b in range(a + 1)]
    grams = {(a, b): np.zeros((factors[a].shape[0], factors[b].shape[0])) for a, b in pairs}
    traces, inner = np.zeros(count), np.zeros((count, count))
    for number, blocks in enumerate(_blocks(factors, 0)):
        for a, b in pairs:
            grams[a, b] += factors[a].outer(blocks[a], blocks[b])
        traces += [factor.inner(x, x).sum() for factor, x in zip(factors, blocks, strict=True)]
        report(number + 1, total)
    for (a, b), gram in grams.items():
        with np.errstate(over="ignore"):
            inner[a, b] = inner[b, a] = np.sum(gram**2)
    return Moments(traces, inner)
