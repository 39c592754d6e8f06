"""What a curve's axis shows: the band where it says something, never at the cost of the curve."""

from __future__ import annotations

import numpy as np
import pytest

from ntkscope.tracking.figures import Line, lines_figure
from ntkscope.tracking.run import Curve


def _limits(name: str, values: list[float], half: list[float]) -> tuple[float, float]:
    middle, wide = np.array(values), np.array(half)
    curve = Curve(np.arange(len(values)), middle, middle - wide, middle + wide)
    axis = lines_figure([Line("run", curve, "#0072b2")], name).axes[0]
    low, high = axis.get_ylim()
    return low, high


def test_a_band_has_room() -> None:
    low, high = _limits("effective_rank", [4, 6, 8], [1, 2, 3])
    assert low == 0
    assert 11 < high < 13
    low, high = _limits("target_alignment", [0.036, 0.036], [0.003, 0.003])
    assert low < 0.033
    assert 0.039 < high < 0.05


def test_a_band_that_says_nothing_leaves_the_curve_its_room() -> None:
    low, high = _limits("effective_rank", [4, 6, 8], [0.1, 1000, 0.1])
    assert low == 0
    assert high < 15
    low, high = _limits("alignment_start", [1.0, 0.6, 0.7], [0.0, 50.0, 0.1])
    assert (low, high) == pytest.approx((-0.05, 1.05))


def test_sizes_far_apart_have_a_logarithmic_axis() -> None:
    assert _limits("trace", [1.0, 1000.0], [0.1, 100.0]) == pytest.approx((0.5, 2000.0))


def test_a_curve_without_numbers_is_drawn() -> None:
    low, high = _limits("trace", [np.nan, np.nan], [np.nan, np.nan])
    assert low < high


def test_names_of_curves_stand_above_and_hide_nothing() -> None:
    curve = Curve(np.arange(3), np.ones(3), np.zeros(3), 2 * np.ones(3))
    names = [f"encoder.layers.{index}.attention" for index in range(12)]
    figure = lines_figure([Line(name, curve, "#0072b2") for name in names], "trace")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    box, axis = legend.get_window_extent(), figure.axes[0].get_window_extent()
    assert box.y0 >= axis.y1
    assert box.x1 <= figure.bbox.x1
    # The panel is as large as without them.
    alone = lines_figure([Line("one", curve, "#0072b2")], "trace")
    alone.draw_without_rendering()
    assert axis.height > 0.9 * alone.axes[0].get_window_extent().height
    assert not alone.legends
