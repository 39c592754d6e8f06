"""Matrices with error bars, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ntkscope.plots.style import INK
from ntkscope.results import ArrayEstimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["heatmap"]


def heatmap(
    axis: Axes, matrix: ArrayEstimate, *, labels: Sequence[str] = (), title: str = "", cosines: bool = False
) -> Any:
    """Draws a matrix with error bars, such as a partial trace or the alignments of layers.

    Entries whose 95% interval holds 0 are dotted.

    Args:
        axis: Where to.
        matrix: Of any two axes.
        labels: Of the rows; those of alignments come with them.
        title: The headline; what the matrix is, if empty.
        cosines: Divide P[a, b] by √(P[a, a] P[b, b]).

    Returns:
        The image, for a colour bar.

    Raises:
        ValueError: If it has other than two axes.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    if matrix.values.ndim != 2:
        raise ValueError(f"a heat map shows a matrix, found the shape {matrix.shape}; pass one with two axes")
    values = matrix.values
    if cosines:
        size = np.sqrt(np.abs(np.diagonal(values)))
        values = values / np.where(size > 0, np.outer(size, size), 1)
    bound = float(np.nanmax(np.abs(values))) or 1.0
    signed = bool(np.nanmin(values) < -1e-3 * bound)
    picture = axis.imshow(
        values,
        cmap="RdBu_r" if signed else "cividis",
        vmin=-bound if signed else 0,
        vmax=bound,
        interpolation="nearest",
    )
    if not matrix.is_exact:
        low, high = matrix.interval()
        rows, columns = np.nonzero((low <= 0) & (high >= 0))
        axis.plot(columns, rows, ".", color=INK, markersize=1.5)
    names = list(labels) or list(getattr(matrix, "rows", ()))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(6, integer=True))
    if names:
        axis.set_yticks(range(len(names)), names, fontsize=8)
        across = list(getattr(matrix, "columns", ())) or names
        axis.set_xticks(range(len(across)), across, fontsize=8, rotation=90)
    axis.tick_params(length=0, labelsize=8)
    axis.set_title(title or matrix.quantity.replace("_", " "), fontsize=11, color=INK)
    return picture
