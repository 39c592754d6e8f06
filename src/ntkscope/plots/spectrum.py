"""The distribution of eigenvalues, drawn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ntkscope.plots.style import COLORS, INK
from ntkscope.runs.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["spectrum_figure"]


def spectrum_figure(spectra: Mapping[str, Spectrum], title: str = "Eigenvalues") -> Figure:
    """How many eigenvalues of each kernel lie above x, with a 95% band; dots are known one by one.

    Args:
        spectra: By name, from :meth:`ntkscope.NTK.spectrum`.
        title: The headline.

    Raises:
        ValueError: If no spectrum has a positive eigenvalue.
    """
    import numpy as np

    from ntkscope.picture import Picture

    largest = max((spectrum.largest for spectrum in spectra.values()), default=0.0)
    if not largest > 0:
        raise ValueError(
            "there is no positive eigenvalue to draw; pass the spectrum of a kernel that is not 0"
        )
    figure = Picture(figsize=(7.2, 4.2), layout="constrained")
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
    axis.set_title(title, fontsize=13, color=INK)
    axis.set_xlabel("eigenvalue of K", fontsize=10)
    axis.set_ylabel("eigenvalues above", fontsize=10)
    axis.grid(color="#e6e6e6", zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure
