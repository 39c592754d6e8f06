"""The report: one page of HTML that needs nothing else, with curves, maps, settings and costs."""

from __future__ import annotations

import functools
import html
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ntkscope.files import make_folder, write_text, write_whole
from ntkscope.tracking.figures import COLORS, Dash, Line, lines_figure, lines_of, matrix_figure, title_of
from ntkscope.tracking.metrics import WATCHED
from ntkscope.tracking.run import Run
from ntkscope.tracking.style import CSS
from ntkscope.tracking.svg import inline_svg
from ntkscope.tracking.tables import tables_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["Plot", "plots_of", "render_page", "write_figures", "write_report"]

#: The most moments of an alignment matrix, and the most layers that are drawn.
MOST_MOMENTS, MOST_LAYERS = 48, 12


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Attributes:
        key: Its file's name, without the ending.
        title: Above it.
        reading: How to read it, in one sentence.
        figure: The figure itself.
        section: The headline that it stands under, with those beside it.
        hints: What its marks say, by the parts' names.
    """

    key: str
    title: str
    reading: str
    figure: Figure
    section: str
    hints: dict[str, list[str]] = field(default_factory=dict)


def write_report(runs: Sequence[Run], path: str | Path) -> None:
    """Writes the report of some runs as one page that opens offline.

    Args:
        runs: What :func:`ntkscope.tracking.read_runs` read, or ``tracker.run``.
        path: The page, ``.html``.

    Raises:
        ValueError: If it cannot be written.
    """
    title = "The kernel during training"
    write_text(Path(path), render_page(title, plots_of(runs), [_problems(runs)], [tables_of(runs)]))


def write_figures(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Every figure as PNG and SVG; the files.

    Raises:
        ValueError: If they cannot be written.
    """
    make_folder(folder)
    paths = []
    for plot in plots:
        write = functools.partial(plot.figure.savefig, dpi=200, facecolor="white")
        for ending in (".png", ".svg"):
            paths.append(folder / f"{plot.key}{ending}")
            write_whole(paths[-1], write)
    return paths


def plots_of(runs: Sequence[Run]) -> list[Plot]:
    """All figures of some runs: curves, alignment matrices, layers."""
    names = [name for name in WATCHED if any(name in run.metrics for run in runs)]
    values = list(dict.fromkeys(name for run in runs for name in run.values))
    return [
        *(_curve(runs, name) for name in [*names, *values]),
        *_matrices(runs),
        *(plot for index, run in enumerate(runs) for plot in _layers(run, index)),
    ]


def _curve(runs: Sequence[Run], name: str) -> Plot:
    lines = lines_of(runs, name)
    reading = WATCHED[name].reading if name in WATCHED else "As the training loop gave it, at every look."
    if len(lines) == 1 and name in WATCHED:
        reading += " The band is the 95% interval."
    return Plot(f"curve-{name}", title_of(name), reading, lines_figure(lines, name), "Curves", _hints(lines))


def _hints(lines: Sequence[Line]) -> dict[str, list[str]]:
    return {f"point-{index}": list(_points(line)) for index, line in enumerate(lines)}


def _points(line: Line) -> Iterator[str]:
    curve = line.curve
    for step, value, low, high in zip(curve.steps, curve.values, curve.low, curve.high, strict=True):
        if np.isfinite(value):
            interval = f" (95%: {low:.4g} to {high:.4g})" if np.isfinite(low) and high > low else ""
            yield f"{line.name}, step {step}: {value:.5g}{interval}"


def _matrices(runs: Sequence[Run]) -> Iterator[Plot]:
    """The alignment of all moments of every run, in the same colours."""
    found = {index: known for index, run in enumerate(runs) if (known := _alignments(run)) is not None}
    # From the next lower tenth on, so that small differences are seen.
    lowest = min((float(np.nanmin(values)) for _, values in found.values()), default=0.0)
    for index, (steps, values) in found.items():
        cells = [
            f"steps {a} and {b}: {values[i, j]:.4f}" for i, a in enumerate(steps) for j, b in enumerate(steps)
        ]
        yield Plot(
            f"alignment-{index}",
            runs[index].name,
            "Bright squares along the diagonal are times in which the kernel stands still; dark ones beside "
            "them say that it became another.",
            matrix_figure(values, steps, "step", "cos(K, K′)", min(0.9, math.floor(10 * lowest) / 10)),
            "Alignment of all moments",
            {"cells": cells},
        )


def _alignments(run: Run) -> tuple[list[int], NDArray[np.float64]] | None:
    if sum(bool(look.fingerprint) or look.step in run.kept for look in run.looks) < 2:
        return None
    try:
        steps, matrix = run.alignment_matrix(most=MOST_MOMENTS)
    except (OSError, ValueError):  # said among the problems
        return None
    return steps, matrix.values


def _layers(run: Run, index: int) -> Iterator[Plot]:
    """The layers' shares of the trace, and their alignment with the targets and the start."""
    layers = run.layers[:MOST_LAYERS]
    for name, reading in _BY_LAYER.items():
        lines = [
            Line(layer, run.curve(name, layer), COLORS[i % len(COLORS)], _DASHES[i // len(COLORS) % 3])
            for i, layer in enumerate(layers)
        ]
        lines = [line for line in lines if len(line.curve.steps)]
        if lines:
            more = f" The first {MOST_LAYERS} of {len(run.layers)}." if len(run.layers) > MOST_LAYERS else ""
            key, section = f"layers-{name}-{index}", f"Layers of {run.name}"
            figure = lines_figure(lines, name)
            yield Plot(key, title_of(name), reading + more, figure, section, _hints(lines))


_DASHES: tuple[Dash, ...] = ("solid", "dashed", "dotted")

#: What is drawn by layer, and how to read it.
_BY_LAYER = {
    "trace": "The layers' traces sum to the whole: the highest curve moves the outputs most.",
    "target_alignment": "Which layers' gradients point along the targets.",
    "alignment_start": "Which layers' kernels changed, and when.",
}


# The page.


def render_page(title: str, plots: Sequence[Plot], before: Sequence[str], after: Sequence[str]) -> str:
    """The page's text.

    Args:
        title: The headline.
        plots: Its figures.
        before: HTML above them.
        after: HTML below them.
    """
    groups = itertools.groupby(plots, key=lambda plot: plot.section)
    cards = "\n".join(_section(name, list(group)) for name, group in groups)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{CSS}</style></head>\n'
        f"<body><main><h1>{html.escape(title)}</h1>\n{''.join(before)}\n"
        f"{cards}\n{''.join(after)}\n</main></body></html>\n"
    )


def _section(name: str, plots: Sequence[Plot]) -> str:
    cards = "\n".join(map(_card, plots))
    return f'<section><h2>{html.escape(name)}</h2><div class="plots">\n{cards}\n</div></section>'


def _card(plot: Plot) -> str:
    label = f"{plot.section}: {plot.title}"
    picture = inline_svg(plot.figure, plot.key, label, plot.hints)
    reading = html.escape(plot.reading)
    return f"<figure><h3>{html.escape(plot.title)}</h3>{picture}<figcaption>{reading}</figcaption></figure>"


def _problems(runs: Sequence[Run]) -> str:
    said = [f"{run.name}: {problem}." for run in runs for problem in run.problems]
    said += [f"{run.name}: no look at step {s}: {why}." for run in runs for s, why in run.failures.items()]
    for run in runs:
        try:
            run.fingerprints(most=MOST_MOMENTS)
        except (OSError, ValueError) as error:
            said.append(f"{run.name}: no alignment matrix: {error}.")
    if not said:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in dict.fromkeys(said))
    return f'<section class="problems"><h2>What is wrong with the logs</h2><ul>{items}</ul></section>'
