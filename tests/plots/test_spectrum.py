"""Figures of eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from ntkscope import plots
from ntkscope.operators.composed import as_map
from ntkscope.runs.lanczos import LanczosRun
from ntkscope.runs.spectrum import Spectrum


def test_spectra_are_drawn_with_bands() -> None:
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
