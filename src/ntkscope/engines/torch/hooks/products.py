"""Inner products of the gradients of all samples, from passes in which each pair of probes meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Meeting", "meetings"]


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
