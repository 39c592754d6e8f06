"""Bounds that hold for certain: what a sketch captured, the exact trace, and no luck.

With Q from the sketch, D = (I - QQᵀ)K(I - QQᵀ) of a positive semidefinite K is one too, and
tr D = tr K - tr QᵀKQ is exact where the trace is. So ‖D‖_F lies between tr D/√(n-k) and tr D, and
0 ≤ ⟨D, D'⟩ ≤ ‖D‖‖D'‖; all else of ⟨K, K'⟩ the sketch knows exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ntkscope.runs.moments import Moment, Moments, MomentSource
from ntkscope.runs.sources import TraceFromElsewhere

__all__ = ["bounds_of"]

#: How many rounding errors of the products the bounds are widened by.
_ROUNDING = 32.0


def bounds_of(source: MomentSource, powers: Mapping[Moment, float]) -> tuple[float, float] | None:
    """Between which numbers Π vⱼ^pⱼ lies for certain, for positive semidefinite kernels.

    Args:
        source: Moments from a sketch, with exact traces from elsewhere.
        powers: The exponents of the moments.

    Returns:
        (low, high); ``None`` if there is no sketch, or a trace is not exact.
    """
    traces: dict[int, float] = {}
    while isinstance(source, TraceFromElsewhere):
        if source.trace.stderr == 0:
            traces[source.kernel] = source.trace.value
        source = source.rest
    if not isinstance(source, Moments) or source.rest is None:
        return None
    if not {kernel for moment in powers for kernel in moment} <= set(traces):
        return None
    low = high = 1.0
    for moment, power in powers.items():
        ends = _ends(source, moment, traces)
        least, most = ends if power > 0 else (ends[1], ends[0])
        low *= _power(least, power)
        high *= _power(most, power)
    return (low, high) if math.isfinite(high) else None


def _ends(moments: Moments, moment: Moment, traces: Mapping[int, float]) -> tuple[float, float]:
    """Between which numbers a moment lies."""
    slack = _ROUNDING * moments.epsilon
    if len(moment) == 1:
        value = traces[moment[0]]
        return value * (1 - slack), value * (1 + slack)
    assert moments.trace_least is not None
    assert moments.inner_least is not None
    assert moments.rest is not None
    left = [traces[kernel] - float(moments.trace_least[kernel]) for kernel in moment]
    scale = math.prod(traces[kernel] for kernel in moment)
    captured = float(moments.inner_least[moment])
    # As much of the trace as rounding may have moved, either way.
    most = math.prod(max(one, 0.0) + slack * traces[kernel] for one, kernel in zip(left, moment, strict=True))
    least = 0.0
    if moment[0] == moment[1] and moments.rest > 0:
        least = max(left[0] - slack * traces[moment[0]], 0.0) ** 2 / moments.rest
    rounding = slack * min(abs(captured) + slack * scale, scale)
    return max(captured + least - rounding, 0.0), captured + most + rounding


def _power(value: float, power: float) -> float:
    return math.inf if value == 0 and power < 0 else float(value**power)
