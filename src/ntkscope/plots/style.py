"""What all figures share: colours, numbers, text that fits, and how they are saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ntkscope.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "GREY", "INK", "fitted", "save_figure", "short_number", "text_width"]

#: Okabe and Ito's colours, which colour-blind readers tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY = "#333333", "#666666"


def short_number(value: float) -> str:
    """A number for an axis: 1.2k, 3M, 0.25."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"


def text_width(text: str, size: float) -> float:
    """Inches that the longest line of a text takes, in points of size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(size=size)
    measure = TextToPath().get_text_width_height_descent
    return max((measure(line, font, False)[0] / 72 for line in text.splitlines()), default=0.0)


def fitted(text: str, inches: float, size: float) -> str:
    """A text broken into lines no wider than that.

    It is broken at spaces, after marks inside of words (``-_./``), and inside of pieces too wide alone.

    Args:
        text: One paragraph.
        inches: The widest line.
        size: Of the letters, in points.
    """
    lines = [""]
    for piece in re.findall(r"\s+|[^\s\-_./]+[\-_./]*|[\-_./]+", text):
        if text_width((lines[-1] + piece).rstrip(), size) <= inches:
            lines[-1] += " " if piece.isspace() else piece
            continue
        rest = piece.strip()
        while rest:
            fits = len(rest)
            while fits > 1 and text_width(rest[:fits], size) > inches:
                fits -= 1
            lines.append(rest[:fits])
            rest = rest[fits:]
    return "\n".join(line.strip() for line in lines if line.strip())


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure as a whole file; the kind follows from the name (png, pdf or svg)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    write_whole(path, lambda target: figure.savefig(target, dpi=160, facecolor="white"))
