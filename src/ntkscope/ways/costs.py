"""Counts of products, turned into seconds: what several ways share."""

from __future__ import annotations

import math

from ntkscope.engines.base import Machine, Sizes

__all__ = ["growth_of", "jvp_seconds", "per_sample_seconds", "vjp_seconds"]


def growth_of(rtol: float) -> float:
    """How many times more probes a tolerance takes than 1% does, where the error falls as 1/√m."""
    return max(1.0, (0.01 / rtol) ** 2)


def vjp_seconds(sizes: Sizes, machine: Machine, count: int) -> float:
    """So many reverse products with the whole batch."""
    calls = 2 * sizes.operations * math.ceil(count / 64)
    return machine.seconds(2.0 * sizes.flops * count, (2.0 * sizes.elements + 2 * sizes.p) * count, calls)


def jvp_seconds(sizes: Sizes, machine: Machine, count: int) -> float:
    """So many forward products with the whole batch."""
    calls = 3 * sizes.operations * math.ceil(count / 64)
    return machine.seconds(2.0 * sizes.flops * count, (3.0 * sizes.elements + sizes.p) * count, calls)


def per_sample_seconds(sizes: Sizes, machine: Machine, probes: int, pieces: int) -> float:
    """Forward pass with taps, backward passes without weight gradients, and the gradients' norms."""
    work = probes * sizes.batch
    chunk_bytes = sizes.itemsize * work * max(3 * sizes.taps + sizes.general, 1)
    passes = max(pieces, math.ceil(chunk_bytes / max(sizes.budget / 2, 1)))
    # Of all the steps of a recurrence, half lie before an output on average.
    share = 0.5 if pieces > 1 else 1.0
    backward = probes * (sizes.flops * sizes.spread + sizes.batch * 2 * sizes.gradient_flops) * share
    written = (
        probes * (2 * sizes.elements * sizes.spread + sizes.batch * (sizes.taps + sizes.general)) * share
    )
    calls = 3 * sizes.operations * (1 + passes * share)
    return machine.seconds(sizes.flops + backward, sizes.elements + written, calls)
