"""Errors in a few words."""

from __future__ import annotations

import pytest

from ntkscope.engines.torch.errors import StructureError, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("one\ntwo"), "one"),
        (StructureError("alone"), "alone"),
        (IndexError(), "IndexError"),
        (KeyError("name"), "'name'"),
    ],
)
def test_the_first_line_or_the_type(error: Exception, line: str) -> None:
    assert first_line(error) == line
