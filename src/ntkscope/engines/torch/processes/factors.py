"""Gradients of all processes' samples, brought together at one process."""

from __future__ import annotations

import dataclasses

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Mixed, Outer
from ntkscope.engines.torch.gradients.sides import Features, Lookup
from ntkscope.engines.torch.processes.exchange import Exchange

__all__ = ["gathered"]


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
