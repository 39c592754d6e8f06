"""A panel of bars for every metric, a bar for every kernel, with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ntkscope.plots.maps import NAME_WIDTH, pair_map
from ntkscope.plots.numbers import Numbers, Shown, numbers_of, symbol_of, title_of
from ntkscope.plots.style import COLORS, GREY, INK, fitted, short_number, text_width
from ntkscope.report import KernelNumbers
from ntkscope.results import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["metric_panels", "report_figure", "single_subtitle", "value_label"]

#: The most bars that stand beside each other, and the most lines of their names; else they lie.
MOST_UPRIGHT, MOST_LINES = 2, 2
#: Inches of a panel of upright bars, and of one of lying bars.
UPRIGHT, LYING = 2.6, 2.4


@dataclass(frozen=True)
class _Panel:
    """One metric: a bar for every name, and the dash across it that is known from elsewhere."""

    metric: str
    names: Sequence[str]
    estimates: Sequence[Estimate]
    known: Sequence[float]
    colors: Sequence[str]

    @property
    def highest(self) -> float:
        """The upper end of the highest bar and its error bar."""
        return max((_top(estimate) for estimate in self.estimates), default=1.0)


def report_figure(report: Shown, title: str = "", subtitle: str = "") -> Figure:
    """One panel for every metric, one bar for every kernel, with 95% intervals.

    The bars of more than two kernels lie below each other, and the metrics of their pairs are pictures.

    Args:
        report: A report, or what ``measure`` or ``measure_all`` returned.
        title: The headline.
        subtitle: What was measured, in small letters; broken into lines that fit.

    Raises:
        ValueError: If there is no kernel.
    """
    from ntkscope.picture import Picture

    numbers = numbers_of(report)
    lying, panels = _lies(numbers), _panels(numbers, None)
    pictured = [metric for metric, known in numbers.pairs.items() if len(known) > 1]
    width, height = _size(panels, lying)
    side = max(0.42, _row(numbers.names)) * len(numbers.names) + 1.2
    names = max(text_width(fitted(name, NAME_WIDTH, 9), 9) for name in numbers.names)
    map_width, map_height = names + side + 1.0, 0.8 * names + side
    width = max(width, *(map_width for _ in pictured), 4.8)
    figure = Picture(
        figsize=(width, height + 0.9 + len(pictured) * map_height),
        layout="constrained",
    )
    if title:
        figure.suptitle(fitted(title, width - 0.4, 13), fontsize=13, color=INK)
    if subtitle:
        figure.supxlabel(fitted(subtitle, width - 0.3, 9), fontsize=9, color=GREY)
    ratios = [*([height] if panels else []), *(map_height for _ in pictured)]
    parts = list(figure.subfigures(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0])
    if panels:
        _draw(parts.pop(0), panels, lying)
    for part, metric in zip(parts, pictured, strict=True):
        pair_map(part, numbers.names, numbers.matrix(metric), title_of(metric))
    return figure


def metric_panels(figure: Figure | SubFigure, report: Shown, reference: Shown | None = None) -> list[Axes]:
    """Draws the panels of a report next to each other.

    Args:
        figure: Where to.
        report: The numbers; a bar each, with its 95% interval. As in :func:`report_figure`.
        reference: The same numbers measured another way; a dash across each bar.
    """
    numbers = numbers_of(report)
    panels = _panels(numbers, None if reference is None else numbers_of(reference))
    return _draw(figure, panels, _lies(numbers))


def _panels(numbers: Numbers, reference: Numbers | None) -> list[_Panel]:
    panels = []
    for metric, estimates in numbers.own.items():
        known = [] if reference is None else [float(estimate) for estimate in reference.own[metric]]
        panels.append(_Panel(metric, numbers.names, estimates, known, COLORS))
    for metric, found in numbers.pairs.items():
        if len(found) == 1:  # more are a picture
            names = [f"{one}\nand {other}" for one, other in found]
            known = [] if reference is None else [float(reference.pairs[metric][pair]) for pair in found]
            panels.append(_Panel(metric, names, list(found.values()), known, COLORS[2:]))
    return panels


def _lies(numbers: Numbers) -> bool:
    """Whether the bars lie below each other, since they or their names are many."""
    room = _room(len(numbers.names))
    lines = max(fitted(name, room, 9).count("\n") + 1 for name in numbers.names)
    return len(numbers.names) > MOST_UPRIGHT or lines > MOST_LINES


def _room(bars: int) -> float:
    """Inches that an upright bar's name may take: its share of the panel beside the axis, and a gap."""
    return (UPRIGHT - 0.55) / (bars + 0.5) - 0.06


def _size(panels: Sequence[_Panel], lying: bool) -> tuple[float, float]:
    """Width and height of the panels, in inches."""
    if not panels:
        return 0.0, 0.0
    if not lying:
        return UPRIGHT * len(panels), 3.1
    names = max(text_width(fitted(name, NAME_WIDTH, 9), 9) for name in panels[0].names)
    return names + LYING * len(panels), 0.9 + _row(panels[0].names) * len(panels[0].names)


def _row(names: Sequence[str]) -> float:
    """Inches that the row of a lying bar takes: as many lines as the longest name has."""
    return 0.17 + 0.17 * max(fitted(name, NAME_WIDTH, 9).count("\n") + 1 for name in names)


def _draw(figure: Figure | SubFigure, panels: Sequence[_Panel], lying: bool) -> list[Axes]:
    axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for place, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        axis.set_title(title_of(panel.metric), fontsize=11, color=INK, pad=18)
        axis.annotate(
            symbol_of(panel.metric), (0.5, 1), xycoords="axes fraction", xytext=(0, 4),
            textcoords="offset points", ha="center", va="bottom", fontsize=9, color=GREY,
        )  # fmt: skip
        if lying:
            _lying_bars(axis, panel, named=place == 0)
        else:
            _upright_bars(axis, panel)
    return axes


def _upright_bars(axis: Axes, panel: _Panel) -> None:
    for place, estimate in enumerate(panel.estimates):
        axis.bar(place, estimate.value, width=0.62, color=panel.colors[place % len(panel.colors)], zorder=2)
        error = _error(estimate)
        if error is not None:
            axis.errorbar(
                place, estimate.value, yerr=error, color=INK, capsize=5, linewidth=1.4, zorder=4
            )  # fmt: skip
        if place < len(panel.known):
            axis.hlines(panel.known[place], place - 0.4, place + 0.4, color="black", linestyle=":", zorder=3)
        axis.annotate(
            value_label(estimate),
            (place, _top(estimate)),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            color=INK,
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
    # A name is as wide as its bar's share of the panel.
    room = _room(len(panel.names))
    lines = ["\n".join(fitted(part, room, 9) for part in name.split("\n")) for name in panel.names]
    axis.set_xticks(range(len(lines)), lines, fontsize=9)
    axis.set_xlim(-0.75, len(lines) - 0.25)
    axis.tick_params(axis="x", length=0)
    _dress(axis, panel, "y")


def _lying_bars(axis: Axes, panel: _Panel, *, named: bool) -> None:
    for place, estimate in enumerate(panel.estimates):
        axis.barh(place, estimate.value, height=0.62, color=panel.colors[0], zorder=2)
        error = _error(estimate)
        if error is not None:
            axis.errorbar(
                estimate.value, place, xerr=error, color=INK, capsize=3, linewidth=1.2, zorder=4
            )  # fmt: skip
        if place < len(panel.known):
            axis.vlines(panel.known[place], place - 0.4, place + 0.4, color="black", linestyle=":", zorder=3)
        axis.annotate(
            value_label(estimate).replace("\n", " "),
            (max(_top(estimate), 0.0), place),
            xytext=(4, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=8,
            color=INK,
            zorder=5,
        )
    lines = [fitted(name.replace("\n", " "), NAME_WIDTH, 9) for name in panel.names]
    axis.set_yticks(range(len(lines)), lines if named else [""] * len(lines), fontsize=9)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    _dress(axis, panel, "x")


def _error(estimate: Estimate) -> list[list[float]] | None:
    """The 95% interval as matplotlib takes it, where there is one."""
    low, high = estimate.interval()
    if not estimate.stderr or not math.isfinite(high):
        return None
    return [[estimate.value - low], [high - estimate.value]]


def _dress(axis: Axes, panel: _Panel, values: str) -> None:
    """The axis of values ("x" or "y"), with room for the labels, and the grid."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    along, limit = (axis.yaxis, axis.set_ylim) if values == "y" else (axis.xaxis, axis.set_xlim)
    along.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    # Bars that lie have their labels, which are long, behind them.
    room = 1.3 if values == "y" else 1.75
    if panel.metric == "alignment":
        limit(0, room)
        along.set_ticks([0, 0.25, 0.5, 0.75, 1] if values == "y" else [0, 0.5, 1])
    else:
        limit(0, room * panel.highest if panel.highest > 0 else 1.0)
        along.set_major_locator(MaxNLocator(4 if values == "y" else 3))
    axis.tick_params(axis="y" if values == "y" else "x", labelsize=9, colors=GREY)
    axis.grid(axis="y" if values == "y" else "x", color="#e6e6e6", zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left" if values == "y" else "bottom"):
        axis.spines[side].set_visible(False)


def _top(estimate: Estimate) -> float:
    """Upper end of the bar and its error bar."""
    high = estimate.interval()[1]
    return high if math.isfinite(high) else estimate.value


def value_label(estimate: Estimate) -> str:
    """A value in four digits, and its relative standard error beneath."""
    value = short_number(float(f"{estimate.value:.4g}"))
    relative = estimate.relative_stderr
    if relative is None:
        return f"{value}\n± ?"
    return f"{value}\nexact" if relative == 0 else f"{value}\n± {100 * relative:.2g}%"


def single_subtitle(numbers: KernelNumbers) -> str:
    """What was measured, in one line."""
    kernel = numbers.kernel
    shape = "×".join(map(str, kernel.output_shape))
    dtype = str(kernel.dtype).removeprefix("torch.")
    size = f"state {shape} (n = {kernel.n:,}), p = {kernel.n_params:,}, {dtype}"
    return f"{size}; error bars: 95% intervals, labels: ± 1 standard error"
