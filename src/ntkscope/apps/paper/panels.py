"""What the panels of all figures share: colours, lines, titles, the legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkscope.apps.paper.analysis import Array
from ntkscope.apps.paper.experiments import METHOD_NAMES, PAPER_METHODS
from ntkscope.apps.paper.store import Results
from ntkscope.apps.paper.words import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INK", "PALETTE", "curve_line", "finish", "new_figure", "panel_title"]

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
INK, _SOFT = "#333333", "#666666"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panel_title(axis: Axes, letter: str, title: str) -> None:
    """The title of a panel, and its letter."""
    axis.set_title(title, fontsize=12, color=INK)
    axis.text(-0.02, 1.03, letter, transform=axis.transAxes, fontsize=14, fontweight="bold", ha="right")


def curve_line(axis: Axes, method: str, x: Array, found: Any) -> None:
    """Median with markers, quartiles as a band; ours are drawn thicker."""
    order = np.argsort(x)
    x, low, median, high = x[order], found.low[order], found.median[order], found.high[order]
    paper = method in PAPER_METHODS
    marker = _MARKERS[method]
    single = method in ("exact", "tolerance")
    axis.plot(
        x, np.maximum(median, 1e-12), color=PALETTE[method], marker=marker,
        ms={"*": 12, "P": 9}.get(marker, 4.5 if paper else 5.5), mec="white", mew=0.6,
        lw=0 if single else (1.5 if paper else 2.3), label=METHOD_NAMES[method],
        zorder={"exact": 6, "tolerance": 5}.get(method, 3),
    )  # fmt: skip
    if not single:
        axis.fill_between(x, np.maximum(low, 1e-12), high, color=PALETTE[method], alpha=0.18, lw=0, zorder=2)


def finish(
    figure: Figure,
    panels: Sequence[Axes],
    results: Results,
    title: str,
    experiments: Sequence[str],
    columns: int,
) -> None:
    """The figure's title, grids, and one legend for all panels, with where it was measured."""
    handles: dict[str, Any] = {}
    for axis in panels:
        axis.grid(True, which="major", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    legend = figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False,
        fontsize=10, title=_caption(results, experiments), title_fontsize=9,
    )  # fmt: skip
    legend.get_title().set_color(_SOFT)
    figure.suptitle(title + (" (quick)" if results.quick else ""), fontsize=14, color=INK)


def _caption(results: Results, experiments: Sequence[str]) -> str:
    repeats = max(results.repeats(name) for name in experiments)
    machine = results.settings["fixed"]
    place = machine.get("gpu") or f"{machine['cores']} × {machine['processor']}"
    return (
        f"median and quartiles of {count(repeats, 'repetition')} (large budgets in fewer); "
        f"{place}, {count(machine['threads'], 'thread')}, torch {machine['torch']}, float32"
    )
