"""Figures of what was measured, as ``Figure`` objects of their own: pyplot is never touched."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkscope.files import write_whole
from ntkscope.report import SYMBOLS, TITLES, KernelNumbers, Report
from ntkscope.results import Estimate
from ntkscope.runs.spectrum import Spectrum

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

__all__ = [
    "COLORS",
    "kernel_maps",
    "metric_panels",
    "report_figure",
    "save_figure",
    "short_number",
    "single_subtitle",
    "spectrum_figure",
    "value_label",
]

#: Okabe and Ito's colours, which colour-blind readers tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK = "#333333"


def report_figure(report: Report, title: str, subtitle: str = "") -> Figure:
    """One panel for every metric, one bar for every kernel, with 95% intervals.

    Args:
        report: The numbers.
        title: The headline.
        subtitle: What was measured, in small letters.
    """
    from matplotlib.figure import Figure

    count = len(report.kernels[0].metrics) + bool(report.alignments)
    figure = Figure(figsize=(max(2.6 * count, 4.8), 4.0), layout="constrained")
    figure.suptitle(title, fontsize=13, color=_INK)
    if subtitle:
        figure.supxlabel(subtitle, fontsize=9, color="#666666")
    metric_panels(figure, report)
    return figure


def metric_panels(figure: Figure | SubFigure, report: Report, reference: Report | None = None) -> list[Axes]:
    """Draws the panels of a report next to each other.

    Args:
        figure: Where to.
        report: The numbers; a bar each, with its 95% interval.
        reference: The same numbers measured another way; a dash across each bar.
    """
    metrics = list(report.kernels[0].metrics)
    axes = figure.subplots(1, len(metrics) + bool(report.alignments), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=False):
        estimates = [kernel.metrics[metric] for kernel in report.kernels]
        known = [kernel.metrics[metric].value for kernel in reference.kernels] if reference else []
        _bars(axis, metric, [kernel.name for kernel in report.kernels], estimates, known, COLORS)
    if report.alignments:
        names = [_alignment_label(alignment.between) for alignment in report.alignments]
        estimates = [alignment.estimate for alignment in report.alignments]
        known = [alignment.estimate.value for alignment in reference.alignments] if reference else []
        _bars(axes[-1], "alignment", names, estimates, known, COLORS[2:])
        axes[-1].set_ylim(0, 1.3)
        axes[-1].set_yticks([0, 0.25, 0.5, 0.75, 1])
    return list(axes)


def _alignment_label(between: tuple[str, str]) -> str:
    return f"{between[0]}\nand {between[1]}"


def _bars(
    axis: Axes,
    metric: str,
    names: Sequence[str],
    estimates: Sequence[Estimate],
    known: Sequence[float],
    colors: Sequence[str],
) -> None:
    axis.set_title(f"{TITLES[metric]}\n", fontsize=11, color=_INK, pad=2)
    axis.text(
        0.5, 1.02, SYMBOLS[metric], transform=axis.transAxes,
        ha="center", va="bottom", fontsize=9, color="#666666",
    )  # fmt: skip
    highest = max((_top(estimate) for estimate in estimates), default=1.0)
    for place, estimate in enumerate(estimates):
        axis.bar(place, estimate.value, width=0.62, color=colors[place % len(colors)], zorder=2)
        low, high = estimate.interval()
        if estimate.stderr and math.isfinite(high):
            axis.errorbar(
                place,
                estimate.value,
                yerr=[[estimate.value - low], [high - estimate.value]],
                color=_INK,
                capsize=5,
                linewidth=1.4,
                zorder=4,
            )
        if place < len(known):
            axis.hlines(known[place], place - 0.4, place + 0.4, color="black", linestyle=":", zorder=3)
        axis.annotate(
            value_label(estimate),
            (place, _top(estimate)),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            color=_INK,
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
    _dress(axis, names, highest)


def _dress(axis: Axes, names: Sequence[str], highest: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lines = ["\n".join("\n".join(textwrap.wrap(part, 14)) for part in name.split("\n")) for name in names]
    axis.set_xticks(range(len(names)), lines, fontsize=9)
    axis.set_xlim(-0.75, len(names) - 0.25)
    axis.set_ylim(0, 1.3 * highest if highest > 0 else 1.0)
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axis.tick_params(axis="y", labelsize=9, colors="#666666")
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", color="#e6e6e6", zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _top(estimate: Estimate) -> float:
    """Upper end of the bar and its error bar."""
    high = estimate.interval()[1]
    return high if math.isfinite(high) else estimate.value


def short_number(value: float) -> str:
    """A number for an axis: 1.2k, 3M, 0.25."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"


def value_label(estimate: Estimate) -> str:
    """A value in four digits, and its relative standard error beneath."""
    value = short_number(float(f"{estimate.value:.4g}"))
    relative = estimate.relative_stderr
    if relative is None:
        return f"{value}\n± ?"
    return f"{value}\nexact" if relative == 0 else f"{value}\n± {100 * relative:.2g}%"


def kernel_maps(
    figure: Figure | SubFigure, kernels: Sequence[tuple[str, NDArray[np.float64]]], labels: NDArray[np.int64]
) -> list[Axes]:
    """Kernels between samples as pictures, with the samples sorted by their labels.

    Args:
        figure: Where to.
        kernels: Titles, and matrices of cosines, shape (B, B), in the order of ``labels``.
        labels: Sorted, shape (B,).
    """
    import numpy as np

    axes = list(figure.subplots(1, len(kernels), squeeze=False)[0])
    edges = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(labels)]])
    middles = (edges[1:] + edges[:-1] - 1) / 2
    picture: Any = None
    for axis, (title, matrix) in zip(axes, kernels, strict=True):
        picture = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=11, color=_INK)
        names = [str(label) for label in labels[edges[:-1]]]
        axis.set_xticks(middles, names, fontsize=9)
        axis.set_yticks(middles, names, fontsize=9)
        axis.tick_params(length=0)
        for edge in edges[1:-1]:
            axis.axhline(edge - 0.5, color="white", linewidth=0.4)
            axis.axvline(edge - 0.5, color="white", linewidth=0.4)
        axis.set_xlabel("digit", fontsize=10)
    axes[0].set_ylabel("digit", fontsize=10)
    bar = figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label("cosine of the two images' gradients", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    return axes


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure as a whole file; the kind follows from the name (png, pdf or svg)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    write_whole(path, lambda target: figure.savefig(target, dpi=160, facecolor="white"))


def single_subtitle(numbers: KernelNumbers) -> str:
    """What was measured, in one line."""
    kernel = numbers.kernel
    shape = "×".join(map(str, kernel.output_shape))
    dtype = str(kernel.dtype).removeprefix("torch.")
    size = f"state {shape} (n = {kernel.n:,}), p = {kernel.n_params:,}, {dtype}"
    return f"{size}; error bars: 95% intervals, labels: ± 1 standard error"


def spectrum_figure(spectra: Mapping[str, Spectrum], title: str = "Eigenvalues") -> Figure:
    """How many eigenvalues of each kernel lie above x, with a 95% band; dots are known one by one.

    Args:
        spectra: By name, from :meth:`ntkscope.NTK.spectrum`.
        title: The headline.

    Raises:
        ValueError: If no spectrum has a positive eigenvalue.
    """
    import numpy as np
    from matplotlib.figure import Figure

    largest = max((spectrum.largest for spectrum in spectra.values()), default=0.0)
    if not largest > 0:
        raise ValueError(
            "there is no positive eigenvalue to draw; pass the spectrum of a kernel that is not 0"
        )
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    for (name, spectrum), color in zip(spectra.items(), itertools.cycle(COLORS), strict=False):
        lowest = max(spectrum.smallest_seen(), spectrum.epsilon * spectrum.largest)
        grid = np.geomspace(lowest / 2, max(spectrum.largest, lowest), 400)
        middle, low, high = spectrum.count_above(grid)
        shown = middle >= 0.5
        axis.plot(grid[shown], middle[shown], color=color, linewidth=1.6, label=name, zorder=3)
        axis.fill_between(grid, np.maximum(low, 0.5), np.maximum(high, 0.5), color=color, alpha=0.25, lw=0)
        ranks = np.arange(1, len(spectrum.known) + 1)
        axis.plot(spectrum.known, ranks, "o", color=color, markersize=4, zorder=4)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title(title, fontsize=13, color=_INK)
    axis.set_xlabel("eigenvalue of K", fontsize=10)
    axis.set_ylabel("eigenvalues above", fontsize=10)
    axis.grid(color="#e6e6e6", zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure
