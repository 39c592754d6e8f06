"""Figures of runs: curves with their 95% intervals, and the alignment of all pairs of moments.

Colours come by name, so that a page can give them values for light, dark and paper; files have them as
they are here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ntkscope.tracking.metrics import WATCHED
from ntkscope.tracking.run import Curve, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "COLORS",
    "INK",
    "Line",
    "bars_figure",
    "curves_figure",
    "lines_figure",
    "lines_of",
    "matrix_figure",
    "palette",
    "spectrum_figure",
    "symbol_of",
    "title_of",
]

#: Okabe and Ito's, which colour-blind readers tell apart, and the colour of text.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#333334"

Dash: TypeAlias = Literal["solid", "dashed", "dotted", "dashdot"]
_DASHES: tuple[Dash, ...] = ("solid", "dashed", "dotted", "dashdot")

#: Sizes with such a ratio need a logarithmic axis.
_FAR = 50

#: Inches of a figure, and the points of its letters: legible at 400 pixels.
SIZE, LETTERS = (4.6, 3.0), 10


@dataclass(frozen=True)
class Line:
    """One curve of a figure."""

    name: str
    curve: Curve
    color: str
    dash: Dash = "solid"


def title_of(name: str) -> str:
    """What people call a number."""
    return WATCHED[name].title if name in WATCHED else name.replace("_", " ")


def symbol_of(name: str) -> str:
    """What it is, if that is known."""
    return WATCHED[name].symbol if name in WATCHED else ""


def lines_of(runs: Sequence[Run], name: str) -> list[Line]:
    """A number of every run that has it, each in the run's own colour."""
    lines = []
    for index, run in enumerate(runs):
        curve = run.curve(name)
        if len(curve.steps):
            color, dash = COLORS[index % len(COLORS)], _DASHES[index // len(COLORS) % len(_DASHES)]
            lines.append(Line(run.name, curve, color, dash))
    return lines


def lines_figure(lines: Sequence[Line], name: str) -> Figure:
    """One number: a curve for every line, with its 95% interval as a band."""
    figure = _figure(SIZE)
    draw_lines(figure.subplots(), lines, name)
    _legend(figure, lines)
    return figure


def curves_figure(runs: Sequence[Run], metrics: Sequence[str] | None = None) -> Figure:
    """A panel for every number, a curve for every run.

    Args:
        runs: What was watched.
        metrics: Which numbers; all if ``None``.

    Raises:
        ValueError: If no run has any of them.
    """
    names = metrics or list(dict.fromkeys(name for run in runs for name in (*run.metrics, *run.values)))
    drawn = [(name, lines) for name in names if (lines := lines_of(runs, name))]
    if not drawn:
        raise ValueError("there is nothing to draw: no look has any of " + (", ".join(names) or "a number"))
    columns = 2 if len(drawn) == 4 else min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = _figure((columns * 3.6, rows * 2.6))
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for axis, (name, lines) in zip(axes, drawn, strict=False):
        draw_lines(axis, lines, name)
        axis.set_title(title_of(name), fontsize=LETTERS + 1, color=INK)
        axis.tick_params(labelbottom=True)
    for axis in axes[len(drawn) :]:
        axis.remove()
    _legend(figure, list({line.name: line for _, lines in drawn for line in lines}.values()))
    return figure


def draw_lines(axis: Axes, lines: Sequence[Line], name: str) -> None:
    """The curves of one number; every point is marked ``point-LINE`` for a page to speak of."""
    style(axis)
    for index, line in enumerate(lines):
        curve = line.curve
        known = np.isfinite(curve.values)
        steps, values = curve.steps[known], curve.values[known]
        banded = known & np.isfinite(curve.low) & np.isfinite(curve.high)
        if (curve.high > curve.low)[banded].any():
            axis.fill_between(
                curve.steps, np.where(banded, curve.low, np.nan), np.where(banded, curve.high, np.nan),
                color=line.color, alpha=0.2, linewidth=0,
            )  # fmt: skip
        axis.plot(steps, values, color=line.color, linestyle=line.dash, linewidth=1.6, label=line.name)
        axis.scatter(steps, values, color=line.color, s=9, gid=f"point-{index}", zorder=3)
    _limits(axis, [line.curve for line in lines], bounded=name in WATCHED and WATCHED[name].bounded)
    axis.set_xlabel("step", fontsize=LETTERS, color=INK)
    axis.set_ylabel(symbol_of(name) or title_of(name), fontsize=LETTERS, color=INK)


def _legend(figure: Figure, lines: Sequence[Line]) -> None:
    """Names of the curves above all panels, where they hide nothing; the figure grows by their rows."""
    if len(lines) < 2:
        return
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    longest = max(len(line.name) for line in lines)
    columns = int(min(len(lines), max(1, width // (0.5 + 0.075 * longest))))
    figure.set_size_inches(width, height + 0.19 * -(-len(lines) // columns))
    handles = [Line2D([], [], color=line.color, linestyle=line.dash, label=line.name) for line in lines]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, fontsize=LETTERS - 1, frameon=False,
        labelcolor=INK, borderpad=0.1, handlelength=1.6, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip


def _limits(axis: Axes, curves: Sequence[Curve], bounded: bool) -> None:
    """All of a share that falls; from zero what is a size, on a logarithmic axis if sizes are far apart."""
    values = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in curves])
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if not bounded and low > 0 and high > _FAR * low:
        axis.set_yscale("log")
        axis.set_ylim(low / 2, high * 2)
        return
    lowest, highest = _with_bands(curves, low, high)
    if bounded:
        lowest, highest = max(lowest, min(low, 0.0)), min(highest, max(high, 1.0))
        if low < 0.8 and high > 0.5:
            lowest, highest = min(lowest, 0.0), 1.0
        room = max(0.05 * (highest - lowest), 1e-6)
        axis.set_ylim(lowest - room, highest + room)
    elif low >= 0:
        axis.set_ylim(0, 1.08 * highest if highest else 1.0)


def _with_bands(curves: Sequence[Curve], low: float, high: float) -> tuple[float, float]:
    """Room for the bands too, but for what of them is wider than all of the curves."""
    reach = max(high - low, 0.2 * max(abs(low), abs(high)))
    ends = np.concatenate([end[np.isfinite(end)] for curve in curves for end in (curve.low, curve.high)])
    ends = np.append(ends, [low, high]).clip(low - reach, high + reach)
    return float(ends.min()), float(ends.max())


def matrix_figure(
    values: NDArray[np.float64], names: Sequence[Any], label: str, bar: str, lowest: float = 0.0
) -> Figure:
    """A matrix as a picture, every cell marked for a page to speak of.

    Args:
        values: Shape (k, k).
        names: Of rows and columns.
        label: What rows and columns are.
        bar: What the values are.
        lowest: The darkest value, or that of the matrix if it is lower; the brightest is 1.
    """
    figure = _figure((4.6, 3.9))
    axis: Axes = figure.subplots()
    style(axis)
    low = min(lowest, float(np.nanmin(values)))
    mesh = axis.pcolormesh(values, cmap="cividis", vmin=low, vmax=1.0, gid="cells")
    mesh.set_edgecolor("face")  # no seams between the cells
    axis.set_aspect("equal")
    axis.invert_yaxis()
    shown = list(_some(len(names), 6))
    axis.set_xticks([i + 0.5 for i in shown], [str(names[i]) for i in shown], fontsize=LETTERS - 1)
    axis.set_yticks([i + 0.5 for i in shown], [str(names[i]) for i in shown], fontsize=LETTERS - 1)
    axis.set_xlabel(label, fontsize=LETTERS, color=INK)
    axis.set_ylabel(label, fontsize=LETTERS, color=INK)
    drawn = figure.colorbar(mesh, ax=axis, shrink=0.9)
    drawn.set_label(bar, fontsize=LETTERS, color=INK)
    drawn.ax.tick_params(labelsize=LETTERS - 1, colors=INK)
    drawn.outline.set_visible(False)
    return figure


def bars_figure(names: Sequence[str], values: Sequence[float], errors: Sequence[float], label: str) -> Figure:
    """A bar for every name, the first on top, each marked ``bar-INDEX``; errors are half intervals."""
    figure = _figure((SIZE[0], max(1.6, 0.28 * len(names) + 0.8)))
    axis: Axes = figure.subplots()
    style(axis)
    axis.grid(visible=False)
    bars = axis.barh(range(len(names)), values, xerr=errors, color=COLORS[0], ecolor=INK, height=0.7)
    for index, bar in enumerate(bars):
        bar.set_gid(f"bar-{index}")
    axis.set_yticks(range(len(names)), names, fontsize=LETTERS - 1)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel(label, fontsize=LETTERS, color=INK)
    return figure


def spectrum_figure(eigenvalues: NDArray[np.float64]) -> Figure:
    """Positive eigenvalues by their rank, on logarithmic axes, marked ``point-0``."""
    figure = _figure(SIZE)
    axis: Axes = figure.subplots()
    style(axis)
    ranks = np.arange(1, len(eigenvalues) + 1)
    axis.plot(ranks, eigenvalues, color=COLORS[0], linewidth=1.2)
    axis.scatter(ranks, eigenvalues, color=COLORS[0], s=9, gid="point-0", zorder=3)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("rank of the eigenvalue", fontsize=LETTERS, color=INK)
    axis.set_ylabel("eigenvalue", fontsize=LETTERS, color=INK)
    return figure


def _some(count: int, most: int) -> Iterator[int]:
    """Evenly chosen numbers below ``count``, the ends among them."""
    yield from dict.fromkeys(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())


def style(axis: Axes) -> None:
    """Thin grey lines, letters that can be read."""
    axis.tick_params(labelsize=LETTERS - 1, colors=INK)
    axis.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_alpha(0.5)


def _figure(size: tuple[float, float]) -> Figure:
    from ntkscope.picture import Picture

    return Picture(figsize=size, layout="constrained")


def palette() -> Mapping[str, str]:
    """The colours by the names that a page gives them."""
    return {INK: "currentColor", **{color: f"var(--c{index})" for index, color in enumerate(COLORS)}}
