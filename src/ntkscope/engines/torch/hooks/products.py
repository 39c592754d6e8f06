"""Inner products of the gradients of all samples, from passes in which each pair of probes meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Mixed, Outer
from ntkscope.engines.torch.gradients.sides import Features, Lookup
from ntkscope.engines.torch.hooks.exchange import Exchange

__all__ = ["Meeting", "gathered", "meetings", "some_of"]


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


def gathered(exchange: Exchange, factor: Factor) -> Factor:
    """A factor of this process's samples as that of all processes' samples.

    The gradients are formed where they are fewer numbers than what they follow from.
    """
    if exchange.size == 1:
        return factor
    if isinstance(factor, Mixed):
        one, other = gathered(exchange, factor.straight), gathered(exchange, factor.transposed)
        if isinstance(one, Outer) and isinstance(other, Outer):
            return Mixed(one, other)
        return Direct(one.rows() + other.rows())
    if not isinstance(factor, Outer) or _is_smaller_formed(factor):
        return Direct(exchange.gather(factor.rows(), 1))
    side = factor.sample_side
    moved: Features | Lookup
    if isinstance(side, Lookup):
        moved = Lookup(exchange.gather(side.index, 0), side.size)
    else:
        moved = Features(exchange.gather(side.dense(factor.dtype), 0))
    return dataclasses.replace(factor, probe_side=exchange.gather(factor.probe_side, 1), sample_side=moved)


def _is_smaller_formed(factor: Outer) -> bool:
    k, batch = factor.probe_side.shape[:2]
    return k * batch * factor.row_size() * factor.probe_side.element_size() <= factor.nbytes


def some_of(factor: Factor, samples: range) -> Factor:
    """The gradients of some samples, one after the other."""
    part = slice(samples.start, samples.stop)
    if isinstance(factor, Outer):
        index = torch.arange(samples.start, samples.stop, device=factor.device)
        return dataclasses.replace(
            factor, probe_side=factor.probe_side[:, part], sample_side=factor.sample_side.picked(index)
        )
    return Direct(factor.rows()[:, part])
