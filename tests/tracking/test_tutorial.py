"""The tutorial says what its code finds."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def test_lazy_and_rich_training_are_told_apart() -> None:
    names: dict[str, Any] = {}
    tutorial = PAGE.split("## How often")[0]
    for block in re.findall(r"^```python\n(.*?)^```", tutorial, re.DOTALL | re.MULTILINE):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, "training.md", "exec"), names)
    lazy, rich = names["lazy"], names["rich"]
    assert lazy.compute()["alignment_start"].value > 0.999
    assert rich.compute()["alignment_start"].value < 0.85
    grown = [
        one.compute()["target_alignment"] - one.looks[0].metrics["target_alignment"].value
        for one in (lazy, rich)
    ]
    assert abs(grown[0].value) < 1e-3
    assert grown[1].value > 0.015
    assert (names["folder"] / "lazy-rich.png").stat().st_size > 10_000
