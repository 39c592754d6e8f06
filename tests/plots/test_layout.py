"""Figures of few and many kernels with short and long names: nothing is cropped, nothing lies on another."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ntkscope import Estimate, Measurement, Measurements
from ntkscope.plots import kernel_maps, pair_map, report_figure
from ntkscope.plots.style import fitted, text_width

SUBTITLE = "state 5×3 (n = 15), p = 83, float32; error bars: 95% intervals, labels: ± 1 standard error"
LONG = "resnet50-imagenet-random-initialisation-seed-"
NAMES = {
    "one": ["init"],
    "two": ["before", "after"],
    "two-long": [LONG + "1", LONG + "2"],
    "two-without-a-break": ["x" * 60, "y" * 60],
    "three": ["init", "step 10", "step 100"],
    "three-long": [LONG + number for number in "123"],
    "four": list("abcd"),
    "twelve": [f"checkpoint-step-{10 * step}" for step in range(12)],
    "twelve-long": [f"{LONG}{step}" for step in range(12)],
}


def _measurements(names: list[str], metrics: int = 3) -> Measurements:
    own = {
        "trace": Estimate(31080.0, 26.0, "per-sample", "trace"),
        "frobenius_norm": Estimate(3482.2, 92.0, "sketch", "frobenius_norm", degrees_of_freedom=4),
        "effective_rank": Estimate(79.7, None, "sketch", "effective_rank"),
    }
    chosen = dict(list(own.items())[:metrics])
    pairs = {"alignment": [Estimate(0.9885, 2.5e-5) for _ in names[1:]]}
    return Measurements((Measurement(chosen, pairs) for _ in names), names)


def _texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: ticks beyond the ends of an axis are not."""
    drawn: dict[int, Text] = {}
    original = Text.draw

    def draw(text: Text, renderer: object) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = text
        original(text, renderer)

    figure.canvas.draw()  # the layout is found here
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        figure.draw(FigureCanvasAgg(figure).get_renderer())
    return list(drawn.values())


@pytest.mark.parametrize("metrics", [1, 3])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_no_text_is_cropped_or_lies_on_another(names: list[str], metrics: int) -> None:
    figure = report_figure(_measurements(names, metrics), " and ".join(names), SUBTITLE)
    texts, frame = _texts(figure), figure.bbox
    for text in texts:
        box = text.get_window_extent()
        assert frame.x0 - 1 <= box.x0 <= box.x1 <= frame.x1 + 1, text.get_text()
        assert frame.y0 - 1 <= box.y0 <= box.y1 <= frame.y1 + 1, text.get_text()
    # Turned names have boxes that overlap where they do not.
    straight = [text for text in texts if text.get_rotation() == 0]
    boxes = [(text.get_text(), text.get_window_extent()) for text in straight]
    for index, (one, box) in enumerate(boxes):
        for other, known in boxes[:index]:
            assert not box.overlaps(known), (one, other)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_every_name_and_the_whole_subtitle_can_be_read(names: list[str]) -> None:
    figure = report_figure(_measurements(names, 1), "numbers", SUBTITLE)
    shown = ["".join(text.get_text().split()) for text in _texts(figure)]
    assert "".join(SUBTITLE.split()) in shown
    for name in names:
        assert "".join(name.split()) in shown


def test_a_text_in_the_way_is_found() -> None:
    figure = Figure(figsize=(3, 3))
    figure.text(0.1, 0.5, "one long text")
    figure.text(0.2, 0.5, "another")
    one, other = (text.get_window_extent() for text in _texts(figure))
    assert one.overlaps(other)


def test_several_pairs_are_a_picture_and_one_is_a_bar() -> None:
    assert [axis.get_title().strip() for axis in report_figure(_measurements(NAMES["two"])).axes] == [
        "trace", "Frobenius norm", "effective rank", "alignment",
    ]  # fmt: skip
    figure = report_figure(_measurements(NAMES["twelve"]))
    (picture,) = [axis for axis in figure.axes if axis.images]
    matrix = np.asarray(picture.images[0].get_array())
    np.testing.assert_array_equal(matrix, _measurements(NAMES["twelve"]).alignment_matrix())
    assert [label.get_text() for label in picture.get_yticklabels()] == NAMES["twelve"]


def test_a_measurement_alone_and_none() -> None:
    figure = report_figure(_measurements(NAMES["one"])[0])
    assert len(figure.axes) == 3
    with pytest.raises(ValueError, match="the measurements hold no kernel; measure at least one"):
        report_figure(Measurements())


def test_lying_bars_have_the_95_percent_interval() -> None:
    figure = report_figure(_measurements(NAMES["twelve"]))
    low, high = _measurements(["a"])[0].frobenius_norm.interval()
    segments = figure.axes[1].containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose(segments[0][:, 0], [low, high])


def test_a_map_of_pairs_leaves_blank_what_is_not_known() -> None:
    figure = Figure(layout="constrained")
    axis = pair_map(figure, ["a", "b"], np.array([[np.nan, 5000.0], [5000.0, np.nan]]), "inner product")
    assert [text.get_text() for text in axis.texts] == ["5k", "5k"]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("labels", [np.array([0, 0, 1, 1, 1, 4]), np.array(list("aabbbc"))])
def test_kernel_maps_are_marked_by_labels(labels: np.ndarray) -> None:
    figure = Figure(layout="constrained")
    kernels = [("before", np.eye(6)), ("after", np.ones((6, 6)))]
    axes = kernel_maps(figure, kernels, labels)
    assert [label.get_text() for label in axes[0].get_xticklabels()] == list(dict.fromkeys(map(str, labels)))
    words = " ".join(text.get_text() for text in _texts(figure))
    assert "label" in words
    assert "digit" not in words
    assert "image" not in words
    other = Figure(layout="constrained")
    kernel_maps(other, kernels, labels, "species")
    assert "species" in " ".join(text.get_text() for text in _texts(other))


@pytest.mark.parametrize("text", [SUBTITLE, LONG, "x" * 60, "a b", ""])
def test_fitted_texts_are_as_wide_as_they_may_be_and_lose_nothing(text: str) -> None:
    lines = fitted(text, 1.2, 9)
    assert text_width(lines, 9) <= 1.2
    assert "".join(lines.split()) == "".join(text.split())
    assert fitted(text, 50, 9) == text
