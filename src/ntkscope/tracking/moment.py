"""One moment of a model: what ``analyze`` found, and the page of it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.files import check_writable, write_text
from ntkscope.results import Cost, Estimate
from ntkscope.tracking.figures import bars_figure, matrix_figure, spectrum_figure, symbol_of, title_of
from ntkscope.tracking.metrics import WATCHED
from ntkscope.tracking.page import Plot, render_page
from ntkscope.tracking.tables import plain_settings, table

__all__ = ["Analysis", "render_analysis"]

#: The most layers and eigenvalues that are drawn.
MOST_LAYERS, MOST_EIGENVALUES = 30, 400

_LAYERS = {
    "trace": "Which layers' parameters move the outputs most; the traces sum to that of the whole.",
    "target_alignment": "Which layers' gradients point along the targets.",
}


@dataclass(frozen=True, eq=False)
class Analysis:
    """What :func:`analyze` found.

    Attributes:
        metrics: Trace, Frobenius norm, effective rank, and the alignment with the targets if there are any.
        layers: Trace and alignment with the targets of each layer's part of the kernel.
        eigenvalues: All eigenvalues, falling, shape (n,); ``None`` where n is too large.
        map: Cosines between the samples' gradients, shape (b, b); ``None`` where samples are coupled.
        order: Which samples those are, shape (b,), sorted by class if the targets are classes.
        classes: Their classes, shape (b,), if the targets are classes.
        settings: The sizes of the kernel, and the versions.
        notes: What was left out, and why.
        cost: Of all of it.
    """

    metrics: Mapping[str, Estimate]
    layers: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    eigenvalues: NDArray[np.float64] | None = field(default=None, repr=False)
    map: NDArray[np.float64] | None = field(default=None, repr=False)
    order: NDArray[np.int64] | None = field(default=None, repr=False)
    classes: NDArray[np.int64] | None = field(default=None, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)

    def save(self, path: str | Path) -> None:
        """Writes the page, which opens offline.

        Args:
            path: Its name, ending in ``.html``.

        Raises:
            ValueError: If it cannot be written.
        """
        check_writable(Path(path), (".html",))
        write_text(Path(path), render_analysis(self))

    def __str__(self) -> str:
        lines = [f"{name.replace('_', ' ')}: {one.value_text()}" for name, one in self.metrics.items()]
        return "\n".join([*lines, *self.notes, f"cost: {self.cost}"])


def render_analysis(found: Analysis) -> str:
    """The page's text."""
    plots = [*_layers(found), *_spectrum(found), *_map(found)]
    rows = [
        [title_of(name), symbol_of(name), one.value_text(), _interval(one), one.method, _reading(name)]
        for name, one in found.metrics.items()
    ]
    head = ["number", "what it is", "value ± 1 s.e.", "95% interval", "method", "how to read it"]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in found.notes)
    left_out = f'<section class="problems"><h2>Left out</h2><ul>{notes}</ul></section>' if notes else ""
    settings = [*plain_settings(found.settings).items(), ("cost", str(found.cost))]
    return render_page(
        f"The kernel of {found.settings.get('model', 'a model')}",
        plots,
        [left_out, table(rows, head, prose=True)],
        [f"<section><h2>Settings and costs</h2>{table(settings, ['', ''])}</section>"],
    )


def _reading(name: str) -> str:
    # A moment has no rise and no fall.
    return WATCHED[name].reading.partition(";")[0].rstrip(".") + "."


def _interval(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return "exact" if low == high else f"{low:.4g} to {high:.4g}" if np.isfinite(low) else "unknown"


def _layers(found: Analysis) -> Iterator[Plot]:
    for name, reading in _LAYERS.items():
        known = {layer: metrics[name] for layer, metrics in found.layers.items() if name in metrics}
        shown = dict(sorted(known.items(), key=lambda item: -item[1].value)[:MOST_LAYERS])
        shown = {layer: one for layer, one in known.items() if layer in shown}
        if not shown:
            continue
        values = [one.value for one in shown.values()]
        halves = [one.interval()[1] - one.value for one in shown.values()]
        errors = [half if np.isfinite(half) else 0.0 for half in halves]
        hints = {f"bar-{i}": [f"{layer}: {one.value_text()}"] for i, (layer, one) in enumerate(shown.items())}
        more = f" The largest {MOST_LAYERS} of {len(known)}." if len(known) > len(shown) else ""
        figure = bars_figure(list(shown), values, errors, symbol_of(name))
        yield Plot(f"layers-{name}", title_of(name), reading + more, figure, "Layers", hints)


def _spectrum(found: Analysis) -> Iterator[Plot]:
    if found.eigenvalues is None or not found.eigenvalues[0] > 0:
        return
    # What is below the rounding of the largest is no eigenvalue but noise.
    positive = found.eigenvalues[found.eigenvalues > 1e-7 * found.eigenvalues[0]]
    shown = positive[:MOST_EIGENVALUES]
    hints = {"point-0": [f"eigenvalue {rank}: {value:.4g}" for rank, value in enumerate(shown, start=1)]}
    yield Plot(
        "spectrum",
        "eigenvalues",
        "Few large eigenvalues before a steep fall say that few directions learn fast, and the rest slowly."
        + (f" The largest {len(shown)}." if len(positive) > len(shown) else ""),
        spectrum_figure(shown),
        "Spectrum and samples",
        hints,
    )


def _map(found: Analysis) -> Iterator[Plot]:
    if found.map is None or found.order is None:
        return
    names = found.order if found.classes is None else found.classes
    said = [
        f"sample {sample}" + ("" if found.classes is None else f" (class {found.classes[i]})")
        for i, sample in enumerate(found.order)
    ]
    cells = [f"{a}, {b}: {found.map[i, j]:.3f}" for i, a in enumerate(said) for j, b in enumerate(said)]
    label = "sample" if found.classes is None else "class of the sample"
    yield Plot(
        "map",
        "the kernel between samples",
        "Bright: a step on one sample moves the other alike. Bright blocks of one class say that the kernel "
        "knows the classes.",
        matrix_figure(found.map, list(names), label, "cosine of gradients"),
        "Spectrum and samples",
        {"cells": cells},
    )
