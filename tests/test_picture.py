"""A figure of ours is a picture in a notebook, whatever was imported."""

from __future__ import annotations

import subprocess
import sys

import torch

from ntkscope import NTK, plots
from ntkscope.picture import Picture
from ntkscope.tracking.figures import bars_figure


def test_every_figure_shows_itself() -> None:
    kernel = NTK(torch.nn.Linear(3, 2), torch.eye(3))
    for figure in (
        plots.report_figure(kernel.measure()),
        plots.spectrum_figure({"K": kernel.spectrum()}),
        bars_figure(["a"], [1.0], [0.1], "trace"),
    ):
        assert isinstance(figure, Picture)
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_pyplot_is_never_touched() -> None:
    code = (
        "import sys, torch, ntkscope\n"
        "tracker = ntkscope.Tracker(torch.nn.Linear(3, 2), torch.eye(3))\n"
        "tracker.plot()._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
