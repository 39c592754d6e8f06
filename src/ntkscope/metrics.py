"""The metrics: each a monomial of traces tr K_a and inner products ⟨K_a, K_b⟩, one line each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from ntkscope.errors import said
from ntkscope.results import Cost, Estimate
from ntkscope.results.estimate import DOUBLE_EPSILON
from ntkscope.runs.bounds import bounds_of
from ntkscope.runs.moments import Moment, MomentSource

__all__ = ["METRICS", "STANDARD", "Powers", "check_metrics", "evaluate", "kernels_of", "moments_of"]

#: The exponents of the moments: ``{(0,): 2, (0, 0): -1}`` is (tr K)² / ‖K‖²_F.
Powers: TypeAlias = Mapping[Moment, float]

#: Every metric by its name. Kernel 0 is the one that is measured, kernel 1 the other one.
METRICS: dict[str, Powers] = {
    "trace": {(0,): 1},
    "frobenius_norm": {(0, 0): 0.5},
    "effective_rank": {(0,): 2, (0, 0): -1},
    "inner_product": {(0, 1): 1},
    "alignment": {(0, 0): -0.5, (0, 1): 1, (1, 1): -0.5},
}

#: What is measured together where nothing else is asked for.
STANDARD = ("trace", "frobenius_norm", "effective_rank", "alignment")

#: Where a metric lies for certain: the nearest number there is no further from the truth.
_RANGES = {"effective_rank": (1.0, math.inf), "alignment": (-1.0, 1.0)}

#: A metric and the kernels that it is of, by their numbers.
Wanted: TypeAlias = tuple[str, tuple[int, ...]]


def kernels_of(metric: str) -> int:
    """How many kernels a metric takes.

    >>> kernels_of("trace"), kernels_of("alignment")
    (1, 2)
    """
    return 1 + max(max(moment) for moment in METRICS[metric])


def powers_of(metric: str, kernels: Sequence[int]) -> Powers:
    """The exponents of the moments of these kernels."""
    powers: dict[Moment, float] = {}
    for moment, power in METRICS[metric].items():
        named = tuple(sorted(kernels[place] for place in moment))
        powers[named] = powers.get(named, 0) + power
    return MappingProxyType(powers)


def moments_of(wanted: Iterable[Wanted]) -> tuple[Moment, ...]:
    """All moments that some metrics need, in the order in which they are needed."""
    needed = (moment for metric, kernels in wanted for moment in powers_of(metric, kernels))
    return tuple(dict.fromkeys(needed))


def evaluate(
    source: MomentSource,
    metric: str,
    kernels: Sequence[int] = (0, 1),
    *,
    method: str,
    cost: Cost,
    seed: int | None = None,
    epsilon: float = DOUBLE_EPSILON,
    powers: Powers | None = None,
) -> Estimate:
    """A metric from the moments of its kernels.

    Args:
        source: The moments.
        metric: One of :data:`METRICS`.
        kernels: The numbers of the kernels, as many as the metric takes or more.
        method: How they were found, for the estimate.
        cost: What was spent.
        seed: The seed of the probes.
        epsilon: Relative rounding of the products.
        powers: In place of the metric's own, of a variant that is made of other moments.

    Returns:
        The metric. A ratio over a zero kernel is not defined: its value is nan, and the note says so.

    Raises:
        ValueError: If exact moments are not finite.
    """
    powers = powers_of(metric, kernels) if powers is None else powers
    values = {moment: source.value(moment) for moment in powers}
    blank = Estimate(math.nan, None, method, metric, cost=cost, seed=seed, epsilon=epsilon)
    if not all(math.isfinite(value) for value in values.values()):
        return dataclasses.replace(blank, note=_not_finite(source, metric, values))
    if any(not values[moment] > 0 for moment, power in powers.items() if power < 0):
        words = metric.replace("_", " ")
        return dataclasses.replace(blank, note=f"the {words} of a zero kernel is not defined")
    if any(values[moment] < 0 for moment, power in powers.items() if power != int(power)):
        note = "the squared norm came out negative; spend more products"
        return dataclasses.replace(blank, value=0.0, note=note)
    found = source.monomial(powers)
    low, high = _RANGES.get(metric, (-math.inf, math.inf))
    bounds = bounds_of(source, powers) if found.summary.stderr != 0 else None
    return dataclasses.replace(
        blank,
        value=min(max(found.summary.value, low), high),
        stderr=found.summary.stderr,
        method=_method(method, found.source),
        samples=found.samples,
        degrees_of_freedom=found.summary.degrees_of_freedom,
        seed=None if found.summary.stderr == 0 else seed,
        bounds=None if bounds is None else (max(bounds[0], low), min(bounds[1], high)),
        note=found.note or _underflow(found.summary.value, epsilon),
    )


#: Of half precision, whose range gradients leave downwards too; float32 does so at 1e-38 alone.
_HALF_EPSILON = 2.0**-10


def _underflow(value: float, epsilon: float) -> str:
    """What a reader should know of a zero in half precision."""
    if value != 0 or epsilon < _HALF_EPSILON:
        return ""
    return "0 in half precision; a wider dtype tells whether the products only fell below its range"


def _not_finite(source: MomentSource, metric: str, values: Mapping[Moment, float]) -> str:
    """A note; an error for moments that are exact, since nothing will make them better."""
    words = (
        f"the {metric.replace('_', ' ')} is not finite, since products of the model leave the range of its "
        f"dtype; bring model and inputs to a wider one ({said('model.double()', '--dtype float64')}), or "
        f"scale the state ({said('outputs=', 'in the factory')})"
    )
    broken = [moment for moment, value in values.items() if not math.isfinite(value)]
    if any(source.monomial({moment: 1}).summary.stderr == 0 for moment in broken):
        raise ValueError(words)
    return words


def _method(method: str, source: str) -> str:
    """``"sketch, trace by per-sample"``; the source alone where all comes from it."""
    if not source:
        return method
    return f"{method}, {source}" if source.startswith("trace by ") else source


def check_metrics(metrics: Sequence[str], known: Mapping[str, Any] = METRICS) -> tuple[str, ...]:
    """Names of metrics, each one that there is.

    Raises:
        TypeError: If it is a text instead of several.
        ValueError: For an unknown one, or none.
    """
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be several names, found {metrics!r}; pass ({metrics!r},)")
    unknown = [metric for metric in metrics if metric not in known]
    if unknown or not metrics:
        found = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"unknown metric {found}; choose from " + ", ".join(map(repr, known)))
    return tuple(dict.fromkeys(metrics))
