"""Lets the documentation show doctests that stand in a docstring without an ``Examples:`` heading."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^>>>.*\n?(?:^\S.*\n?)*)+", re.MULTILINE)


class ExampleSections(griffe.Extension):
    """Puts the heading there while the pages are built."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _DOCTEST.sub(_with_heading, obj.docstring.value)


def _with_heading(match: re.Match[str]) -> str:
    return "Examples:\n" + textwrap.indent(match[0].rstrip(), "    ") + "\n"
