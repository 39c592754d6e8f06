"""The figures of arXiv 2511.10796, drawn from the raw measurements alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ntkscope import report
from ntkscope.apps.paper.analysis import (
    baseline_seconds,
    best_speedup,
    median_speedup,
    speedup_of,
    spread,
)
from ntkscope.apps.paper.comparison import OURS_TRACE
from ntkscope.apps.paper.experiments import KERNEL_METRICS, PAPER_METHODS
from ntkscope.apps.paper.panels import INK, PALETTE, curve_line, finish, new_figure, panel_title
from ntkscope.apps.paper.store import Results
from ntkscope.apps.paper.words import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]

_SHOWN = (1e-2, 1e-3, 1e-4, 1e-5)


# Figure 1: speed-up against accuracy.


def speedup_figure(results: Results) -> Figure:
    """Speed-up over n NTK products against the accuracy of the trace."""
    figure = new_figure(10.6, 5.4)
    panels = figure.subplots(1, 2)
    for axis, experiment, letter in zip(panels, ("mlp", "gru"), "AB", strict=True):
        _speedup_panel(axis, results, experiment)
        n, p = int(results.fact(experiment, "n")), int(results.fact(experiment, "p"))
        panel_title(axis, letter, f"{TITLES[experiment]}: n = {n:,}, p = {p:,}")
        axis.set_ylabel("speed-up over n NTK products")
    finish(figure, panels, results, "Trace of K: speed-up against accuracy", ("mlp", "gru"), 2)
    return figure


def _speedup_panel(axis: Axes, results: Results, experiment: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    tolerances = np.logspace(-2, -5, 31)
    for name, methods, words in (
        ("paper's best", PAPER_METHODS, "the paper's methods"),
        ("our best", OURS_TRACE, "per-sample and exact (ours)"),
    ):
        color = PALETTE[name]
        found = best_speedup(results, experiment, tolerances, methods)
        reached = found.median > 0
        x = tolerances[reached]
        label = f"{words}: best of each repetition"
        axis.plot(x, found.median[reached], color=color, lw=2.2, label=label, zorder=4)
        axis.fill_between(x, found.low[reached], found.high[reached], color=color, alpha=0.2, lw=0, zorder=2)
        steady = median_speedup(results, experiment, tolerances, methods)
        axis.plot(
            tolerances, steady, color=color, lw=1.5, ls=(0, (4, 2)), label=f"{words}: best by median error"
        )
    _tolerance_points(axis, results, experiment)
    axis.set(xscale="log", yscale="log", xlim=(1.5e-2, 2.6e-6))
    axis.set_xticks(_SHOWN, [f"{100 * (1 - t):.5g}%" for t in _SHOWN])
    axis.xaxis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}×")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("accuracy of the trace")


def _tolerance_points(axis: Axes, results: Results, experiment: str) -> None:
    """trace(rtol) where its error really was; beyond the axis an arrow says so."""
    from matplotlib.patheffects import withStroke

    curve = results.curve(experiment, "tolerance", "trace")
    if curve is None:
        return
    speed, errors = speedup_of(results, experiment, curve), spread(curve.errors)
    edge, color = 4e-6, PALETTE["tolerance"]
    inside = errors.median >= edge
    x = np.where(inside, errors.median, edge)
    label = "trace(rtol=…) (ours), at the error that it had (▶: exact)"
    axis.errorbar(
        x, speed.median, yerr=np.stack([speed.median - speed.low, speed.high - speed.median]),
        xerr=np.where(inside, [errors.median - errors.low, errors.high - errors.median], 0),
        fmt="none", ecolor=color, elinewidth=1.2, alpha=0.8, zorder=5,
    )  # fmt: skip
    axis.plot(
        x[inside], speed.median[inside], ls="", marker="P", ms=9, mec="white", mew=0.8, color=color, zorder=6,
        label=label,
    )  # fmt: skip
    axis.plot(
        x[~inside],
        speed.median[~inside],
        ls="",
        marker=">",
        ms=9,
        mec="white",
        mew=0.8,
        color=color,
        zorder=6,
    )
    for place, height, rtol in zip(x[inside], speed.median[inside], curve.settings[inside], strict=True):
        note = axis.annotate(
            f"rtol={rtol:g}", (place, height), xytext=(6, -13), textcoords="offset points", fontsize=8,
            color=INK, zorder=7,
        )  # fmt: skip
        note.set_path_effects([withStroke(linewidth=3, foreground="white")])


# Figures 2 and 3: the trace, three panels.


def _trace_figure(experiment: str) -> Callable[[Results], Figure]:
    def draw(results: Results) -> Figure:
        """Estimate against probes; error against runtime; its low-runtime part."""
        figure = new_figure(13.4, 5.2)
        panels = figure.subplots(1, 3)
        _estimates(panels[0], results, experiment)
        for axis in panels[1:]:
            _errors(axis, results, experiment, "trace", (*PAPER_METHODS, *OURS_TRACE, "tolerance"))
        _whole_range(panels[1], results, experiment)
        _low_part(panels[2], results, experiment)
        for axis, letter, title in zip(
            panels, "ABC", ("estimate of tr K", "error against runtime", "its low-runtime part"), strict=True
        ):
            panel_title(axis, letter, title)
        name = TITLES[experiment]
        finish(figure, panels, results, f"Estimating the trace of the {name}'s kernel", (experiment,), 4)
        return figure

    return draw


def _estimates(axis: Axes, results: Results, experiment: str) -> None:
    truth = results.fact(experiment, "trace")
    axis.axhline(truth, color=INK, ls="--", lw=1.2, label="exact value", zorder=1)
    reach = 0.0
    for method in (*PAPER_METHODS, "per-sample"):
        curve = results.curve(experiment, method, "trace")
        if curve is None:
            continue
        found = spread(curve.values)
        curve_line(axis, method, curve.settings, found)
        wide = curve.settings >= 60
        if wide.any() and method in PAPER_METHODS:
            reach = max(reach, float(np.abs(np.array([found.low, found.high])[:, wide] - truth).max()))
    axis.set(xscale="log", xlabel="probes m", ylabel="tr K")
    axis.set_xlim(0.8, None)
    if reach:
        axis.set_ylim(truth - 1.6 * reach, truth + 1.6 * reach)


def _errors(axis: Axes, results: Results, experiment: str, metric: str, methods: Sequence[str]) -> None:
    for method in methods:
        curve = results.curve(experiment, method, metric)
        if curve is None:
            continue
        x = spread(curve.seconds).median
        curve_line(axis, method, x, spread(curve.errors))
    axis.set(yscale="log", xscale="log", xlabel="runtime in seconds", ylabel="relative error")


def _whole_range(axis: Axes, results: Results, experiment: str) -> None:
    exact = baseline_seconds(results, experiment, "trace")
    curve = results.curve(experiment, "ntk-products", "trace")
    scaled = ", scaled" if curve is not None and curve.scaled else ""
    axis.axvline(
        exact, color=PALETTE["ntk-products"], ls="--", lw=1.4, label=f"n NTK products ({exact:.3g} s{scaled})"
    )
    axis.set_ylim(1e-9, 1)


def _low_part(axis: Axes, results: Results, experiment: str) -> None:
    """As far as 324 probes of Hutch++ take, on a linear axis."""
    curve = results.curve(experiment, "hutch++", "trace")
    if curve is not None:
        axis.set_xscale("linear")
        axis.set_xlim(0, 1.02 * float(spread(curve.seconds).median[curve.settings <= 330].max()))
    end = axis.get_xlim()[1]
    seen = [y for line in axis.get_lines() for x, y in np.asarray(line.get_xydata()) if x <= end]
    axis.set_ylim(max(1e-9, min(seen, default=1e-9) / 3), 2 * max(seen, default=1.0))


# Figure 4: norm, alignment, effective rank.


def kernels_figure(results: Results) -> Figure:
    """Errors against the runtime as a share of the exact run, for the kernels of an MNIST MLP."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(13.4, 5.2)
    panels = figure.subplots(1, 3)
    for axis, metric, letter in zip(panels, KERNEL_METRICS, "ABC", strict=True):
        exact = baseline_seconds(results, "mnist", metric)
        for method in ("hutch++", "sketch", "nystrom", "exact"):
            curve = results.curve("mnist", method, metric)
            if curve is not None:
                curve_line(axis, method, 100 * spread(curve.seconds).median / exact, spread(curve.errors))
        axis.set(xscale="log", yscale="log", ylabel="relative error", ylim=(1e-10, 1))
        axis.set_xlabel(f"runtime in % of the exact run ({exact:.0f} s)")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(_percent)
        axis.xaxis.set_minor_formatter(NullFormatter())
        panel_title(axis, letter, f"{report.TITLES[metric]} {report.SYMBOLS[metric]}")
    n = int(results.fact("mnist", "n"))
    title = f"Norm, alignment and effective rank of the MNIST MLP's kernels, n = {n:,}"
    finish(figure, panels, results, title, ("mnist",), 4)
    return figure


def _percent(value: float, place: int) -> str:
    return f"{value:g}%"


#: The figures by name.
FIGURES: dict[str, Callable[[Results], Figure]] = {
    "fig1": speedup_figure,
    "fig2": _trace_figure("mlp"),
    "fig3": _trace_figure("gru"),
    "fig4": kernels_figure,
}
