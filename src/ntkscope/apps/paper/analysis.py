"""What figures, table and page read out of the raw measurements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ntkscope.apps.paper.experiments import PAPER_METHODS
from ntkscope.apps.paper.store import Curve, Results

__all__ = [
    "OURS",
    "TOLERANCES",
    "Behind",
    "Point",
    "Spread",
    "Target",
    "baseline_seconds",
    "behind",
    "best_speedup",
    "falling",
    "median_speedup",
    "speedup_of",
    "spread",
    "time_to",
]

Array = NDArray[np.float64]

#: The accuracies of the tables: 99%, 99.9% and 99.999%.
TOLERANCES = (1e-2, 1e-3, 1e-5)

#: This library's methods, as far as they do not choose by themselves.
OURS = ("per-sample", "sketch", "nystrom", "exact")


@dataclass(frozen=True)
class Spread:
    """Medians and quartiles over the repetitions, one for each setting."""

    low: Array
    median: Array
    high: Array


def spread(values: Array) -> Spread:
    """Over the last axis; NaN is what was not run.

    >>> spread(np.array([[1.0, 2.0, 3.0, np.nan]])).median
    array([2.])
    """
    low, median, high = np.nanpercentile(values, [25, 50, 75], axis=-1)
    return Spread(low, median, high)


def baseline_seconds(results: Results, experiment: str, metric: str) -> float:
    """The paper's exact way: n NTK products, scaled to all of them where a part was run.

    Raises:
        ValueError: If it was not measured.
    """
    curve = results.curve(experiment, "ntk-products", metric)
    if curve is None:
        raise ValueError(f"the n NTK products of {experiment!r} were not measured; run it without --redraw")
    return float(np.nanmedian(curve.seconds))


@dataclass(frozen=True)
class Target:
    """Where a method first has a median error within a tolerance.

    Attributes:
        setting: Its probes, products or tolerance.
        seconds: Median time.
        vjps: Median of the reverse products.
        jvps: Median of the forward products.
        error: Median error.
    """

    setting: float
    seconds: float
    vjps: float
    jvps: float
    error: float


def time_to(curve: Curve, tolerance: float) -> Target | None:
    """The quickest setting of a method whose median error is within the tolerance."""
    errors, seconds = spread(curve.errors).median, spread(curve.seconds).median
    within = np.flatnonzero(errors <= tolerance)
    if not len(within):
        return None
    best = within[np.argmin(seconds[within])]
    return Target(
        float(curve.settings[best]), float(seconds[best]), float(curve.vjps[best]), float(curve.jvps[best]),
        float(errors[best]),
    )  # fmt: skip


def speedup_of(results: Results, experiment: str, curve: Curve, metric: str = "trace") -> Spread:
    """Over n NTK products, one for each setting."""
    return spread(baseline_seconds(results, experiment, metric) / curve.seconds)


@dataclass(frozen=True)
class Point:
    """A point of a curve: a method at a setting, with its median time and error."""

    method: str
    setting: float
    seconds: float
    error: float


@dataclass(frozen=True)
class Behind:
    """Points of the paper's curves, and those that no point of ours beats in both time and error."""

    points: int
    ahead: tuple[Point, ...]


def behind(results: Results, experiment: str, metric: str) -> Behind:
    """Compares the curves of error against runtime, by medians."""
    theirs = _points(results, experiment, metric, PAPER_METHODS)
    ours = _points(results, experiment, metric, OURS)
    ahead = [
        point
        for point in theirs
        if not any(own.seconds <= point.seconds and own.error <= point.error for own in ours)
    ]
    return Behind(len(theirs), tuple(ahead))


def _points(results: Results, experiment: str, metric: str, methods: tuple[str, ...]) -> list[Point]:
    points = []
    for method in methods:
        curve = results.curve(experiment, method, metric)
        if curve is not None:
            seconds, errors = spread(curve.seconds).median, spread(curve.errors).median
            points += [
                Point(method, float(setting), float(time), float(error))
                for setting, time, error in zip(curve.settings, seconds, errors, strict=True)
            ]
    return points


def falling(curve: Curve) -> float:
    """Exponent a of the median error ~ m^a, fitted over all budgets."""
    errors = spread(curve.errors).median
    return float(np.polyfit(np.log(curve.settings), np.log(np.maximum(errors, 1e-16)), 1)[0])


def best_speedup(
    results: Results, experiment: str, tolerances: Array, methods: tuple[str, ...] = PAPER_METHODS
) -> Spread:
    """Speed-up over n NTK products of the method that is best in each repetition, knowing the truth.

    The rule of arXiv 2511.10796: in each repetition a method reaches a tolerance at its first budget
    with an error within it (times interpolated between budgets), and the quickest method counts.
    Where large budgets ran in some repetitions alone and others did not get there, only those count.

    Args:
        results: The measurements.
        experiment: Which.
        tolerances: Relative errors.
        methods: Among which the best is taken.

    Returns:
        Medians and quartiles over the repetitions; 0 where it is not reached.
    """
    curves = [results.curve(experiment, method, "trace") for method in methods]
    known = [curve for curve in curves if curve is not None]
    if not known:
        raise ValueError(f"no method of {', '.join(methods)} was measured on {experiment!r}")
    times = np.min([_crossings(curve, tolerances) for curve in known], axis=0)
    complete = np.all([np.isfinite(curve.seconds).all(axis=0) for curve in known], axis=0)
    speedups = baseline_seconds(results, experiment, "trace") / times
    partial = ~np.isfinite(times).all(axis=1)
    if complete.any():
        speedups[np.ix_(partial, ~complete)] = np.nan
    return spread(speedups)


def median_speedup(
    results: Results, experiment: str, tolerances: Array, methods: tuple[str, ...] = PAPER_METHODS
) -> Array:
    """Speed-up over n NTK products of the quickest budget whose median error is within each tolerance.

    No repetition is lucky here: a budget counts by its errors in all repetitions. NaN where none is within.
    """
    base = baseline_seconds(results, experiment, "trace")
    curves = [results.curve(experiment, method, "trace") for method in methods]
    found = np.full(len(tolerances), np.nan)
    for place, tolerance in enumerate(tolerances):
        targets = [time_to(curve, tolerance) for curve in curves if curve is not None]
        times = [target.seconds for target in targets if target is not None]
        if times:
            found[place] = base / min(times)
    return found


def _crossings(curve: Curve, tolerances: Array) -> Array:
    """When each repetition's error first is within each tolerance: (tolerances, repetitions)."""
    out = np.full((len(tolerances), curve.errors.shape[1]), np.inf)
    for repeat in range(curve.errors.shape[1]):
        ran = np.flatnonzero(np.isfinite(curve.seconds[:, repeat]))
        errors, seconds = curve.errors[ran, repeat], curve.seconds[ran, repeat]
        for row, tolerance in enumerate(tolerances):
            within = np.flatnonzero(errors <= tolerance)
            if not len(within):
                continue
            last = within[0]
            out[row, repeat] = seconds[last]
            if last and errors[last - 1] > errors[last]:
                share = (tolerance - errors[last - 1]) / (errors[last] - errors[last - 1])
                out[row, repeat] = seconds[last - 1] + share * (seconds[last] - seconds[last - 1])
    return out
