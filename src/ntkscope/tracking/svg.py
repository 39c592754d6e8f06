"""A figure as SVG inside of a page: colours that follow the page, and values to read by hovering."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ntkscope.tracking.figures import palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg"]

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"


def inline_svg(figure: Figure, key: str, label: str, hints: Mapping[str, Sequence[str]]) -> str:
    """The figure as an ``svg`` element.

    Args:
        figure: Drawn by :mod:`ntkscope.tracking.figures`.
        key: Tells its ids from those of other figures of the page.
        label: What it shows, for readers who do not see it.
        hints: For the name (gid) of a part of the figure, what each of its marks says when it is pointed
            at, in the order in which they were drawn.
    """
    root = ElementTree.fromstring(_text(figure, key))
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    for part in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(part)
    by_id = {element.get("id"): element for element in root.iter() if element.get("id")}
    for gid, texts in hints.items():
        if gid in by_id:
            _speak(by_id[gid], texts)
    _rename(root, key)
    root.set("role", "img")
    root.set("aria-label", label)
    ElementTree.register_namespace("", _SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    for color, name in palette().items():
        text = text.replace(color, name)
    return text


def _text(figure: Figure, key: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    # Letters stay letters: smaller, and they can be searched. The same ids every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _speak(part: ElementTree.Element, texts: Sequence[str]) -> None:
    """Gives every mark of a part what it says."""
    shapes = (f"{{{_SVG}}}use", f"{{{_SVG}}}path")
    defined = {id(e) for defs in part.iter(f"{{{_SVG}}}defs") for e in defs.iter()}
    marks = [e for e in part.iter() if e.tag in shapes and id(e) not in defined]
    for mark, text in zip(marks, texts, strict=False):
        title = ElementTree.SubElement(mark, f"{{{_SVG}}}title")
        title.text = text


def _rename(root: ElementTree.Element, key: str) -> None:
    """Ids of its own, with what refers to them."""
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{key}-{element.get('id')}")
        link = element.attrib.pop(_LINK, None)
        if link:
            # A colour bar is a picture, with its data in place of a link.
            element.set("href", f"#{key}-{link[1:]}" if link.startswith("#") else link)
        for name in ("clip-path", "style"):
            value = element.get(name)
            if value and "url(#" in value:
                element.set(name, re.sub(r"url\(#", f"url(#{key}-", value))
