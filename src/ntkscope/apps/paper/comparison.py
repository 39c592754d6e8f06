"""What arXiv 2511.10796 reports, and the same quantities here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ntkscope import report
from ntkscope.apps.paper.analysis import baseline_seconds, best_speedup, spread, time_to
from ntkscope.apps.paper.experiments import PAPER_METHODS
from ntkscope.apps.paper.store import Results
from ntkscope.apps.paper.words import TITLES, duration, error_words, factor, percent

__all__ = ["OURS_TRACE", "PUBLISHED", "Published", "published_rows", "speedup_words"]

#: This library's ways to the trace that know the truth as little as the paper's.
OURS_TRACE = ("per-sample", "exact")

Line = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Published:
    """What the paper reports of an experiment on the trace.

    Attributes:
        trace: Its exact value, as plotted.
        exact_seconds: Time of n NTK products.
        speedups: Accuracy and speed-up of its best method, as plotted or said.
        accurate: A small error, and in what time its Hutch++ reaches it.
    """

    trace: str
    exact_seconds: float
    speedups: dict[float, str]
    accurate: tuple[float, str]


PUBLISHED = {
    "mlp": Published(
        "about 2,315",
        1.96,
        {1e-2: "about 95× (80× in the text)", 1e-3: "about 36×", 1e-5: "about 36× (30× in the text)"},
        (1e-6, "about 0.06 s"),
    ),
    "gru": Published(
        "about 223,060",
        1557.72,
        {1e-2: "about 13,000×", 1e-3: "about 10,000×", 1e-5: "about 60× to 70×"},
        (2e-6, "about 40 s"),
    ),
}

#: Errors that the paper's Figure 4 reaches within a fifth of the exact run's time.
_FIFTH = {"frobenius_norm": "1e-5", "alignment": "1.5e-5", "effective_rank": "5e-4"}


def published_rows(results: Results) -> list[Line]:
    """Quantity, paper, its methods here, this library, remark."""
    present = results.experiments()
    rows: list[Line] = []
    for experiment, published in PUBLISHED.items():
        if experiment in present:
            rows += _trace_rows(results, experiment, published)
    if "mnist" in present:
        rows += _kernel_rows(results)
    return rows


def _trace_rows(results: Results, experiment: str, published: Published) -> Iterator[Line]:
    name = TITLES[experiment]
    truth = f"{results.fact(experiment, 'trace'):,.2f}"
    yield f"{name}: trace", published.trace, truth, truth, "model, inputs and seed as in the paper"
    base, exact = baseline_seconds(results, experiment, "trace"), results.curve(experiment, "exact", "trace")
    yield (
        f"{name}: exact trace",
        f"{published.exact_seconds:,.2f} s",
        duration(base),
        duration(float(np.nanmedian(exact.seconds))) if exact else "–",
        _remark_exact(published.exact_seconds / base),
    )
    for tolerance, speedup in published.speedups.items():
        yield (
            f"{name}: speed-up at {100 * (1 - tolerance):.5g}%",
            speedup,
            speedup_words(results, experiment, tolerance, PAPER_METHODS),
            speedup_words(results, experiment, tolerance, OURS_TRACE),
            "the best method of each repetition, knowing the truth" + _remark_budgets(tolerance),
        )
    error, seconds = published.accurate
    curve = results.curve(experiment, "hutch++", "trace")
    target = time_to(curve, error) if curve else None
    yield (
        f"{name}: Hutch++ to {error_words(error)}",
        seconds,
        duration(target.seconds) if target else "not reached with the budgets run",
        f"{duration(float(np.nanmedian(exact.seconds)))} (exact)" if exact else "–",
        f"at m = {target.setting:,.0f} probes here" if target else "",
    )


def _remark_exact(ratio: float) -> str:
    if 0.8 < ratio < 1.25:
        return "about the same time as the paper's"
    faster = f"{ratio:.1f} times faster" if ratio > 1 else f"{1 / ratio:.1f} times slower"
    return f"n NTK products run {faster} here: another machine, and products in blocks under vmap"


def _remark_budgets(tolerance: float) -> str:
    return "; budgets from m = 6 on, the paper's plot begins at m = 60" if tolerance == 1e-2 else ""


def speedup_words(results: Results, experiment: str, tolerance: float, methods: tuple[str, ...]) -> str:
    """The median speed-up of the best of the methods in each repetition."""
    found = float(best_speedup(results, experiment, np.array([tolerance]), methods).median[0])
    return factor(found) if found > 0 else "not reached with the budgets run"


def _kernel_rows(results: Results) -> Iterator[Line]:
    for metric, published in _FIFTH.items():
        base = baseline_seconds(results, "mnist", metric)
        exact = results.curve("mnist", "exact", metric)
        ours = "–"
        if exact is not None:
            share = float(np.nanmedian(exact.seconds)) / base
            ours = f"{error_words(float(np.nanmedian(exact.errors)))} in {percent(share)} (exact)"
        yield (
            f"{TITLES['mnist']}: {report.TITLES[metric]}, error within 20% of the exact run's time",
            published,
            _best_within(results, metric, 0.2 * base),
            ours,
            "its weights and digits are not ours, so only orders of magnitude compare",
        )


def _best_within(results: Results, metric: str, seconds: float) -> str:
    curve = results.curve("mnist", "hutch++", metric)
    if curve is None:
        return "–"
    times, errors = spread(curve.seconds).median, spread(curve.errors).median
    inside = np.flatnonzero(times <= seconds)
    if not len(inside):
        return "–"
    best = inside[np.argmin(errors[inside])]
    base = baseline_seconds(results, "mnist", metric)
    return f"{error_words(float(errors[best]))} in {percent(float(times[best] / base))}"
