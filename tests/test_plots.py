from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import ntkscope
from ntkscope import plots
from ntkscope.operators.composed import as_map
from ntkscope.plots import kernel_maps, metric_panels, report_figure, save_figure, short_number, value_label
from ntkscope.report import Alignment, KernelNumbers, Report, interval_text, to_json
from ntkscope.results import Cost, Estimate
from ntkscope.runs.lanczos import LanczosRun
from ntkscope.runs.spectrum import Spectrum


@pytest.fixture(scope="module")
def report() -> Report:
    kernel = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))
    metrics = {
        "trace": Estimate(31080.0, 26.0, "per-sample", "trace"),
        "frobenius_norm": Estimate(3482.2, 92.0, "sketch", "frobenius_norm", degrees_of_freedom=4),
        "effective_rank": Estimate(79.7, None, "sketch", "effective_rank"),
    }
    kernels = [
        KernelNumbers(name, kernel, metrics, Cost(60)) for name in ("before", "a-checkpoint-with-a-long-name")
    ]
    pair = Alignment(("before", "a-checkpoint-with-a-long-name"), Estimate(0.9, 0.0))
    return Report(tuple(kernels), (pair,))


def _texts(axis: Axes) -> str:
    return " ".join(text.get_text() for text in axis.texts)


def test_every_metric_has_a_panel_with_values_and_units(report: Report) -> None:
    figure = report_figure(report, "title", "subtitle")
    titles = [axis.get_title().strip() for axis in figure.axes]
    assert titles == ["trace", "Frobenius norm", "effective rank", "alignment"]
    assert "31.08k" in _texts(figure.axes[0])
    assert "± 0.084%" in _texts(figure.axes[0])
    assert "tr K" in _texts(figure.axes[0])
    assert "± ?" in _texts(figure.axes[2])
    assert "exact" in _texts(figure.axes[3])


def test_error_bars_are_the_95_percent_interval(report: Report) -> None:
    figure = report_figure(report, "title")
    (low, high) = report.kernels[0].metrics["frobenius_norm"].interval()
    segments = figure.axes[1].containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose(segments[0][:, 1], [low, high])


def test_no_text_lies_on_another_or_outside(report: Report) -> None:
    figure = report_figure(report, "title", "subtitle")
    figure.canvas.draw()
    frame = figure.bbox
    labels = [label for axis in figure.axes for label in axis.get_xticklabels()]
    boxes = [label.get_window_extent() for label in labels]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    for axis in figure.axes:
        own = [label.get_window_extent() for label in axis.get_xticklabels()]
        own += [text.get_window_extent() for text in axis.texts]
        assert not any(a.overlaps(b) for index, a in enumerate(own) for b in own[:index])


def test_kernel_maps_are_marked_by_labels() -> None:
    figure = Figure(layout="constrained")
    axes = kernel_maps(
        figure, [("before", np.eye(6)), ("after", np.ones((6, 6)))], np.array([0, 0, 1, 1, 1, 4])
    )
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0", "1", "4"]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("name", ["out.png", "out.pdf", "out.svg"])
def test_figures_are_saved_by_the_kind_of_their_name(report: Report, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_figure(report_figure(report, "title"), path)
    start = {"out.png": b"\x89PNG", "out.pdf": b"%PDF", "out.svg": b"<?xml"}[name]
    assert path.read_bytes().startswith(start)
    if name == "out.png":
        with Image.open(path) as picture:
            assert 800 < picture.width < 3000
            assert 300 < picture.height < 2000


def test_pyplot_is_never_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, torch, ntkscope\n"
        "import ntkscope.apps.cli\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from pathlib import Path\n"
        "from ntkscope.plots import report_figure, save_figure\n"
        "from ntkscope.report import Report, measure_kernel\n"
        "kernel = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))\n"
        "numbers, _ = measure_kernel('linear', kernel)\n"
        f"save_figure(report_figure(Report((numbers,)), 'title'), Path({str(tmp_path / 'out.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_panels_show_a_reference(report: Report) -> None:
    figure = Figure()
    axes = metric_panels(figure, report, reference=report)
    assert len(axes[0].collections) > len(metric_panels(Figure(), report)[0].collections)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.25"), (1200, "1.2k"), (5.026e6, "5.026M"), (2e9, "2G"), (0, "0"), (-3e3, "-3k")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


def test_labels_of_values() -> None:
    assert value_label(Estimate(2314.2, 0.0)) == "2.314k\nexact"
    assert value_label(Estimate(2314.2, 23.1)) == "2.314k\n± 1%"
    assert value_label(Estimate(2314.2, None)) == "2.314k\n± ?"


def test_intervals_show_their_width() -> None:
    assert interval_text(Estimate(2314.2322, 0.0)) == "exact"
    assert interval_text(Estimate(2314.2322, None)) == "unknown"
    assert interval_text(Estimate(2314.2322, 12.0)) == "2291 to 2338"
    assert interval_text(Estimate(0.94123, 0.00038)) == "0.94049 to 0.94197"


def test_json_has_no_nan() -> None:
    assert to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")}) == (
        '{\n  "a": null,\n  "b": [\n    null,\n    1.5\n  ],\n  "c": "x"\n}\n'
    )


def test_spectra_are_drawn_with_bands():
    values = np.geomspace(1e-3, 1e3, 100)
    run = LanczosRun(as_map(np.diag(values)), 10)
    run.grow(60)
    spectra = {"seen": run.result(), "exact": Spectrum.of_eigenvalues(values)}
    figure = plots.spectrum_figure(spectra, "Two kernels")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["seen", "exact"]
    assert len(axis.collections) == 2
    with pytest.raises(ValueError, match="no positive eigenvalue"):
        plots.spectrum_figure({"zero": Spectrum.of_eigenvalues(np.zeros(3))})
