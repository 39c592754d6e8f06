"""The report: one page of HTML that needs nothing else, with curves, maps, settings and costs."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkscope.files import make_folder, write_text, write_whole
from ntkscope.tracking.figures import COLORS, Line, lines_figure, lines_of, matrix_figure, symbol_of, title_of
from ntkscope.tracking.metrics import WATCHED
from ntkscope.tracking.run import Run
from ntkscope.tracking.style import CSS
from ntkscope.tracking.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        hints: What its marks say, by the parts' names.
    """

    key: str
    title: str
    reading: str
    figure: Figure
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
    write_text(Path(path), render_page(title, plots_of(runs), [_problems(runs)], [_settings(runs)]))


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
        *(plot for index, run in enumerate(runs) for plot in _matrix(run, index)),
        *(plot for index, run in enumerate(runs) for plot in _layers(run, index)),
    ]


def _curve(runs: Sequence[Run], name: str) -> Plot:
    lines = lines_of(runs, name)
    reading = WATCHED[name].reading if name in WATCHED else "As the training loop gave it, at every look."
    if len(lines) == 1 and name in WATCHED:
        reading += " The band is the 95% interval."
    return Plot(f"curve-{name}", title_of(name), reading, lines_figure(lines, name), _hints(lines))


def _hints(lines: Sequence[Line]) -> dict[str, list[str]]:
    return {f"point-{index}": list(_points(line)) for index, line in enumerate(lines)}


def _points(line: Line) -> Iterator[str]:
    curve = line.curve
    for step, value, low, high in zip(curve.steps, curve.values, curve.low, curve.high, strict=True):
        if np.isfinite(value):
            interval = f" (95%: {low:.4g} to {high:.4g})" if np.isfinite(low) and high > low else ""
            yield f"{line.name}, step {step}: {value:.5g}{interval}"


def _matrix(run: Run, index: int) -> Iterator[Plot]:
    if sum(bool(look.fingerprint) or look.step in run.kept for look in run.looks) < 2:
        return
    try:
        steps, matrix = run.alignment_matrix(most=MOST_MOMENTS)
    except (OSError, ValueError):  # said among the problems
        return
    values = matrix.values
    cells = [
        f"steps {a} and {b}: {values[i, j]:.4f}" for i, a in enumerate(steps) for j, b in enumerate(steps)
    ]
    yield Plot(
        f"alignment-{index}",
        f"alignment of all moments: {run.name}",
        "Bright squares along the diagonal are times in which the kernel stands still; dark ones beside them "
        "say that it became another.",
        matrix_figure(values, steps, "step", "cos(K, K′)"),
        {"cells": cells},
    )


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
            title, figure = f"{title_of(name)} by layer: {run.name}", lines_figure(lines, name)
            yield Plot(f"layers-{name}-{index}", title, reading + more, figure, _hints(lines))


_DASHES = ("solid", "dashed", "dotted")

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
    cards = "\n".join(map(_card, plots))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{CSS}</style></head>\n'
        f"<body><main><h1>{html.escape(title)}</h1>\n{''.join(before)}\n"
        f'<div class="plots">\n{cards}\n</div>\n{"".join(after)}\n</main></body></html>\n'
    )


def _card(plot: Plot) -> str:
    picture = inline_svg(plot.figure, plot.key, plot.title, plot.hints)
    reading = html.escape(plot.reading)
    return f"<figure><h2>{html.escape(plot.title)}</h2>{picture}<figcaption>{reading}</figcaption></figure>"


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """A table of HTML, with everything escaped."""
    top = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


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


def _settings(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in (*run.config, *run.settings)))
    rows = [[name.replace("_", " "), *(_setting(run, name) for run in runs)] for name in names]
    costs = [_costs(run) for run in runs]
    rows += [[name, *(cost[name] for cost in costs)] for name in costs[0]] if costs else []
    last = [
        [title_of(name), symbol_of(name), *(_last(run, name) for run in runs)]
        for name in WATCHED
        if any(name in run.metrics for run in runs)
    ]
    head = [run.name for run in runs]
    return (
        f"<section><h2>At the last look</h2>{table(last, ['number', 'what it is', *head])}</section>"
        f"<section><h2>Settings and costs</h2>{table(rows, ['', *head])}</section>"
    )


def _setting(run: Run, name: str) -> str:
    value = run.config.get(name, run.settings.get(name, ""))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _last(run: Run, name: str) -> str:
    found = [look.metrics[name] for look in run.looks if name in look.metrics]
    return found[-1].value_text() if found else ""


def _costs(run: Run) -> dict[str, str]:
    looks = run.looks
    seconds, training = sum(look.cost.seconds for look in looks), looks[-1].training if looks else 0.0
    share = f"{100 * sum(x.cost.seconds for x in looks[1:]) / training:.1f}%" if training > 0 else ""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return {
        "looks": str(len(looks)),
        "last step": f"{looks[-1].step:,}" if looks else "",
        "backward passes of looks (VJPs)": f"{sum(look.cost.vjps for look in looks):,}",
        "seconds of looks": f"{seconds:.2f}",
        "seconds of training": f"{training:.2f}" if training else "",
        "looks after the first, of training": share,
        "versions": versions,
    }
