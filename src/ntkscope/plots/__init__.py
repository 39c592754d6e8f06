"""Figures of what was measured, as ``Figure`` objects of their own: pyplot is never touched."""

from __future__ import annotations

from ntkscope.plots.bars import metric_panels, report_figure, single_subtitle, value_label
from ntkscope.plots.heat import heatmap
from ntkscope.plots.maps import kernel_maps, pair_map
from ntkscope.plots.spectrum import spectrum_figure
from ntkscope.plots.style import COLORS, save_figure, short_number

__all__ = [
    "COLORS",
    "heatmap",
    "kernel_maps",
    "metric_panels",
    "pair_map",
    "report_figure",
    "save_figure",
    "short_number",
    "single_subtitle",
    "spectrum_figure",
    "value_label",
]
