"""Inner products of the gradients of all samples, from passes in which each pair of probes meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Mixed, Outer
from ntkscope.engines.torch.gradients.sides import Features, Lookup
from ntkscope.engines.torch.hooks.exchange import Exchange

__all__ = ["Meeting", "gathered", "meetings"]


@dataclasses.dataclass(frozen=True)
class Meeting:
    """A pass with some of the probes.

    Attributes:
        probes: Their numbers.
        fresh: Which of their pairs no pass before has had, shape (k, k).
    """

    probes: list[int]
    fresh: Tensor


def meetings(probes: int, at_once: int) -> Iterator[Meeting]:
    """Passes of so many probes at once at most, in which every pair of probes meets, by halves.

    Args:
        probes: How many there are.
        at_once: How many fit in one pass; at least 2 are taken.
    """
    size = probes if probes <= at_once else max(1, at_once // 2)
    parts = [list(range(start, min(start + size, probes))) for start in range(0, probes, size)]
    met = torch.zeros(probes, probes, dtype=torch.bool)
    for first, one in enumerate(parts):
        for other in parts[first + 1 :] if len(parts) > 1 else [[]]:
            both = torch.tensor([*one, *other])
            fresh = ~met[both][:, both]
            met[both.unsqueeze(1), both] = True
            yield Meeting(both.tolist(), fresh)


def gathered(exchange: Exchange, rank: int, factor: Factor) -> Factor | None:
    """A factor of all processes' samples at one of them, and nothing at the others.

    What moves are the gradients or what they follow from, whichever is less.
    """
    if exchange.size == 1:
        return factor
    if isinstance(factor, Mixed):
        one = gathered(exchange, rank, factor.straight)
        other = gathered(exchange, rank, factor.transposed)
        if one is None or other is None:
            return None
        if isinstance(one, Outer) and isinstance(other, Outer):
            return Mixed(one, other)
        return Direct(one.rows() + other.rows())
    if not isinstance(factor, Outer) or _is_smaller_formed(factor):
        rows = exchange.gather_at(rank, factor.rows(), 1)
        return None if rows is None else Direct(rows)
    side = factor.sample_side
    is_table = isinstance(side, Lookup)
    own = side.index if isinstance(side, Lookup) else side.dense(factor.dtype)
    features = exchange.gather_at(rank, own, 0)
    delta = exchange.gather_at(rank, factor.probe_side, 1)
    if features is None or delta is None:
        return None
    moved = Lookup(features, side.width) if is_table else Features(features)
    return dataclasses.replace(factor, probe_side=delta, sample_side=moved)


def _is_smaller_formed(factor: Outer) -> bool:
    k, batch = factor.probe_side.shape[:2]
    return k * batch * factor.row_size() * factor.probe_side.element_size() <= factor.nbytes
