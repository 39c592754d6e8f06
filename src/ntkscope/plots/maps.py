"""Matrices as pictures: kernels between samples, and metrics of every pair of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ntkscope.plots.style import INK, fitted, short_number

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

__all__ = ["kernel_maps", "pair_map"]

#: The widest name beside a picture, in inches, and the most kernels whose cells hold their numbers.
NAME_WIDTH, MOST_WRITTEN = 2.0, 16


def kernel_maps(
    figure: Figure | SubFigure,
    kernels: Sequence[tuple[str, NDArray[np.float64]]],
    labels: NDArray[Any],
    label_name: str = "label",
) -> list[Axes]:
    """Kernels between samples as pictures, with the samples sorted by their labels.

    Args:
        figure: Where to.
        kernels: Titles, and matrices of cosines, shape (B, B), in the order of ``labels``.
        labels: Sorted, shape (B,); numbers or texts.
        label_name: What the labels are, such as ``"class"``.
    """
    import numpy as np

    axes = list(figure.subplots(1, len(kernels), squeeze=False)[0])
    edges = np.concatenate([[0], np.flatnonzero(labels[1:] != labels[:-1]) + 1, [len(labels)]])
    middles = (edges[1:] + edges[:-1] - 1) / 2
    picture: Any = None
    for axis, (title, matrix) in zip(axes, kernels, strict=True):
        picture = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=11, color=INK)
        names = [str(label) for label in labels[edges[:-1]]]
        axis.set_xticks(middles, names, fontsize=9)
        axis.set_yticks(middles, names, fontsize=9)
        axis.tick_params(length=0)
        for edge in edges[1:-1]:
            axis.axhline(edge - 0.5, color="white", linewidth=0.4)
            axis.axvline(edge - 0.5, color="white", linewidth=0.4)
        axis.set_xlabel(label_name, fontsize=10)
    axes[0].set_ylabel(label_name, fontsize=10)
    bar = figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label("cosine of the two samples' gradients", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    return axes


def pair_map(
    figure: Figure | SubFigure, names: Sequence[str], matrix: NDArray[np.float64], title: str = "alignment"
) -> Axes:
    """A metric of every pair of kernels, such as :meth:`~ntkscope.Measurements.alignment_matrix`.

    Args:
        figure: Where to.
        names: Of the m kernels.
        matrix: Shape (m, m); nan is left blank.
        title: Above it.
    """
    import numpy as np

    axis: Axes = figure.subplots()
    bounded = title == "alignment"
    low, high = (0.0, 1.0) if bounded else (None, None)
    picture: Any = axis.imshow(matrix, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize=11, color=INK)
    lines = [fitted(name, NAME_WIDTH, 9) for name in names]
    places = range(len(names))
    long = max(len(line) for name in lines for line in name.splitlines()) * len(names) > 40
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axis.set_xticks(places, lines, fontsize=9, **turned)
    axis.set_yticks(places, lines, fontsize=9)
    axis.tick_params(length=0)
    if len(names) <= MOST_WRITTEN:
        for row, column in np.argwhere(np.isfinite(matrix)):
            value = float(matrix[row, column])
            shade = (value - picture.norm.vmin) / max(picture.norm.vmax - picture.norm.vmin, 1e-300)
            axis.text(
                column, row, f"{value:.2f}" if bounded else short_number(float(f"{value:.3g}")),
                ha="center", va="center", fontsize=8, color="white" if shade < 0.5 else "black",
            )  # fmt: skip
    axis.set_anchor("W")  # below the first of the panels
    bar = figure.colorbar(picture, cax=axis.inset_axes((1.04, 0, 0.05, 1)))
    bar.ax.tick_params(labelsize=9)
    return axis
