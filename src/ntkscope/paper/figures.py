"""The figures of arXiv 2511.10796, drawn from the raw measurements alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkscope.paper.analysis import Array, baseline_seconds, best_speedup, speedup_of, spread
from ntkscope.paper.experiments import METHOD_NAMES, PAPER_METHODS
from ntkscope.paper.store import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "PALETTE"]

#: Okabe and Ito's colours, the same for a method in every figure.
PALETTE = {
    "hutch++": "#0072B2",
    "rhutch": "#E69F00",
    "fhutch": "#009E73",
    "per-sample": "#D55E00",
    "exact": "#000000",
    "tolerance": "#CC79A7",
    "sketch": "#56B4E9",
    "nystrom": "#882255",
    "paper's best": "#0072B2",
    "our best": "#D55E00",
    "ntk-products": "#777777",
}
_MARKERS = {
    "hutch++": "o",
    "rhutch": "s",
    "fhutch": "^",
    "per-sample": "D",
    "exact": "*",
    "tolerance": "P",
    "sketch": "D",
    "nystrom": "v",
}
_INK, _SOFT = "#333333", "#666666"
_OURS_TRACE = ("per-sample", "exact", "tolerance")
_TITLES = {"mlp": "MLP", "gru": "GRU"}
_METRICS = {
    "frobenius_norm": "Frobenius norm ‖K‖",
    "alignment": "alignment cos(K, K′)",
    "effective_rank": "effective rank",
}


# Figure 1: speed-up against accuracy.


def speedup_figure(results: Results) -> Figure:
    """Speed-up over n NTK products against the accuracy of the trace."""
    figure = _figure(10.6, 5.0)
    panels = figure.subplots(1, 2)
    for axis, experiment, letter in zip(panels, ("mlp", "gru"), "AB", strict=True):
        _speedup_panel(axis, results, experiment)
        n, p = int(results.fact(experiment, "n")), int(results.fact(experiment, "p"))
        _title(axis, letter, f"{_TITLES[experiment]}: n = {n:,}, p = {p:,}")
        axis.set_ylabel("speed-up over n NTK products")
    _finish(figure, panels, results, "Trace of K: speed-up against accuracy", ("mlp", "gru"), columns=2)
    return figure


def _speedup_panel(axis: Axes, results: Results, experiment: str) -> None:
    tolerances = np.logspace(-2, -5, 25)
    groups: list[tuple[str, tuple[str, ...], str]] = [
        ("paper's best", PAPER_METHODS, "best of Hutch++, RHutch, FHutch, chosen knowing the truth"),
        (
            "our best",
            ("per-sample", "exact"),
            "best of per-sample and exact (ours), chosen knowing the truth",
        ),
    ]
    for name, methods, label in groups:
        found = best_speedup(results, experiment, tolerances, methods)
        reached = found.median > 0
        axis.plot(tolerances[reached], found.median[reached], color=PALETTE[name], lw=2.2, label=label)
        axis.fill_between(
            tolerances[reached],
            np.maximum(found.low[reached], 1e-3),
            found.high[reached],
            color=PALETTE[name],
            alpha=0.22,
            lw=0,
        )
    _tolerance_points(axis, results, experiment)
    axis.axhline(1, color=PALETTE["ntk-products"], ls=":", lw=1.2)
    axis.set(xscale="log", yscale="log", xlim=(1.6e-2, 2.2e-6))
    axis.set_xticks(TOLERANCES_SHOWN, [f"{100 * (1 - t):.5g}%" for t in TOLERANCES_SHOWN])
    axis.minorticks_off()
    axis.set_xlabel("accuracy of the trace")


TOLERANCES_SHOWN = (1e-2, 1e-3, 1e-4, 1e-5)


def _tolerance_points(axis: Axes, results: Results, experiment: str) -> None:
    """trace(rtol) where its error really was; beyond the axis an arrow says so."""
    curve = results.curve(experiment, "tolerance", "trace")
    if curve is None:
        return
    speed, errors = speedup_of(results, experiment, curve), spread(curve.errors)
    edge = 4e-6
    x = np.maximum(errors.median, edge)
    inside = errors.median >= edge
    color = PALETTE["tolerance"]
    axis.errorbar(
        x, speed.median, yerr=[speed.median - speed.low, speed.high - speed.median],
        xerr=np.where(inside, [errors.median - errors.low, errors.high - errors.median], 0),
        fmt="none", ecolor=color, elinewidth=1.2, zorder=5,
    )  # fmt: skip
    label = "trace(rtol=…) (ours), at the error that it had, not knowing the truth"
    axis.plot(x[inside], speed.median[inside], ls="", marker="P", ms=8, mec="white", mew=0.8, color=color,
              zorder=6, label=label)  # fmt: skip
    axis.plot(x[~inside], speed.median[~inside], ls="", marker=">", ms=8, mec="white", mew=0.8, color=color,
              zorder=6, label="the same, where it is exact: beyond the axis")  # fmt: skip


# Figures 2 and 3: the trace, three panels.


def _trace_figure(experiment: str) -> Callable[[Results], Figure]:
    def draw(results: Results) -> Figure:
        """Estimate against probes; error against runtime; its low-runtime part."""
        figure = _figure(13.4, 5.2)
        panels = figure.subplots(1, 3)
        _estimates(panels[0], results, experiment)
        for axis in panels[1:]:
            _errors(axis, results, experiment, "trace", (*PAPER_METHODS, *_OURS_TRACE))
        _whole_range(panels[1], results, experiment)
        _low_part(panels[2], results, experiment)
        for axis, letter, title in zip(
            panels, "ABC", ("estimate of tr K", "error against runtime", "its low-runtime part"), strict=True
        ):
            _title(axis, letter, title)
        name = _TITLES[experiment]
        _finish(figure, panels, results, f"Estimating the trace of the {name}'s kernel", (experiment,), 7)
        return figure

    return draw


def _estimates(axis: Axes, results: Results, experiment: str) -> None:
    truth = results.fact(experiment, "trace")
    axis.axhline(truth, color=_INK, ls="--", lw=1.2, label="exact value", zorder=1)
    reach = 0.0
    for method in (*PAPER_METHODS, "per-sample"):
        curve = results.curve(experiment, method, "trace")
        if curve is None:
            continue
        found = spread(curve.values)
        _line(axis, method, curve.settings, found)
        wide = curve.settings >= 60
        if wide.any() and method in PAPER_METHODS:
            reach = max(reach, float(np.abs(np.array([found.low, found.high])[:, wide] - truth).max()))
    axis.set(xscale="log", xlabel="probes m", ylabel="tr K")
    axis.set_xlim(0.8, None)
    axis.set_ylim(truth - 1.6 * reach, truth + 1.6 * reach)


def _errors(axis: Axes, results: Results, experiment: str, metric: str, methods: Sequence[str]) -> None:
    for method in methods:
        curve = results.curve(experiment, method, metric)
        if curve is None:
            continue
        x = spread(curve.seconds).median
        _line(axis, method, x, spread(curve.errors))
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
    """As far as 324 probes of the paper's methods, on a linear axis."""
    ends = []
    for method in PAPER_METHODS:
        curve = results.curve(experiment, method, "trace")
        if curve is not None:
            ends.append(float(spread(curve.seconds).median[curve.settings <= 330].max()))
    axis.set_xscale("linear")
    axis.set_xlim(0, max(ends, default=1.0))
    axis.set_ylim(1e-9, 1)


# Figure 4: norm, alignment, effective rank.


def kernels_figure(results: Results) -> Figure:
    """Errors against the runtime as a share of the exact run, for the kernels of an MNIST MLP."""
    figure = _figure(13.4, 5.2)
    panels = figure.subplots(1, 3)
    for axis, (metric, title), letter in zip(panels, _METRICS.items(), "ABC", strict=True):
        exact = baseline_seconds(results, "mnist", metric)
        for method in ("hutch++", "sketch", "nystrom", "exact"):
            curve = results.curve("mnist", method, metric)
            if curve is not None:
                _line(axis, method, 100 * spread(curve.seconds).median / exact, spread(curve.errors))
        axis.set(xscale="log", yscale="log", ylabel="relative error", ylim=(1e-10, 1))
        axis.set_xlabel(f"runtime in % of the exact run ({exact:.0f} s)")
        axis.xaxis.set_major_formatter(_percent)
        axis.xaxis.set_minor_formatter(lambda value, place: "")
        _title(axis, letter, title)
    n = int(results.fact("mnist", "n"))
    title = f"Norm, alignment and effective rank of the MNIST MLP's kernels, n = {n:,}"
    _finish(figure, panels, results, title, ("mnist",), 4)
    return figure


def _percent(value: float, place: int) -> str:
    return f"{value:g}%"


# What the panels share.


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _title(axis: Axes, letter: str, title: str) -> None:
    axis.set_title(title, fontsize=12, color=_INK)
    axis.text(-0.02, 1.03, letter, transform=axis.transAxes, fontsize=14, fontweight="bold", ha="right")


def _line(axis: Axes, method: str, x: Array, found: Any) -> None:
    """Median with markers, quartiles as a band; ours are drawn thicker."""
    order = np.argsort(x)
    x, low, median, high = x[order], found.low[order], found.median[order], found.high[order]
    paper = method in PAPER_METHODS
    marker = _MARKERS[method]
    single = method in ("exact", "tolerance")
    axis.plot(
        x, np.maximum(median, 1e-12), color=PALETTE[method], marker=marker,
        ms={"*": 13, "P": 8}.get(marker, 4.5 if paper else 5.5), mec="white", mew=0.6,
        lw=0 if single else (1.5 if paper else 2.3), label=METHOD_NAMES[method],
        zorder=4 if single else 3,
    )  # fmt: skip
    if not single:
        axis.fill_between(x, np.maximum(low, 1e-12), high, color=PALETTE[method], alpha=0.18, lw=0, zorder=2)


def _finish(
    figure: Figure,
    panels: Sequence[Axes],
    results: Results,
    title: str,
    experiments: Sequence[str],
    columns: int,
) -> None:
    handles: dict[str, Any] = {}
    for axis in panels:
        axis.grid(True, which="major", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=10,
    )
    figure.suptitle(title + (" (quick)" if results.quick else ""), fontsize=14, color=_INK)
    figure.supxlabel(_caption(results, experiments), fontsize=8.5, color=_SOFT)


def _caption(results: Results, experiments: Sequence[str]) -> str:
    repeats = max(results.repeats(name) for name in experiments)
    machine = results.settings["fixed"]
    place = machine.get("gpu") or f"{machine['cores']} × {machine['processor']}"
    runs = "repetition" if repeats == 1 else "repetitions"
    return (
        f"median and quartiles of {repeats} {runs} (large budgets in fewer); "
        f"{place}, {machine['threads']} threads, torch {machine['torch']}, float32"
    )


#: The figures by name.
FIGURES: dict[str, Callable[[Results], Figure]] = {
    "fig1": speedup_figure,
    "fig2": _trace_figure("mlp"),
    "fig3": _trace_figure("gru"),
    "fig4": kernels_figure,
}
