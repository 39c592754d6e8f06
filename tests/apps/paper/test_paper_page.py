"""The page and the README say what the committed measurements say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from ntkscope.apps.paper.page import page
from ntkscope.apps.paper.store import Store

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "paper_page.py"
pytestmark = pytest.mark.skipif(
    not (ROOT / "results" / "paper" / "settings.json").exists(), reason="needs the results of the source tree"
)
REMEDY = "run: python scripts/paper_page.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_the_page_is_what_the_results_give(script: dict[str, Any]) -> None:
    assert script["PAGE"].read_text(encoding="utf-8") == page(Store(script["RESULTS"]).read()), REMEDY


def test_the_pictures_are_those_of_the_results(script: dict[str, Any]) -> None:
    for name in script["PICTURES"]:
        assert (script["IMAGES"] / name).read_bytes() == (script["RESULTS"] / name).read_bytes(), REMEDY


def test_the_readme_holds_the_table_of_the_results(script: dict[str, Any]) -> None:
    text = script["README"].read_text(encoding="utf-8")
    assert script["with_table"](text, Store(script["RESULTS"]).read()) == text, REMEDY


def test_a_table_is_put_between_its_marks(script: dict[str, Any]) -> None:
    results = Store(script["RESULTS"]).read()
    text = script["with_table"]("a\n<!-- paper -->\nold\n<!-- end -->\nb <!-- end -->\n", results)
    assert re.match(r"a\n<!-- paper -->\n\n\| quantity .*\n<!-- end -->\nb <!-- end -->\n$", text, re.DOTALL)
    assert "old" not in text
    assert script["with_table"](text, results) == text


def test_the_papers_shape_is_in_the_results() -> None:
    """Hutch++ drops below 1e-6 at some 200 probes on the MLP; the exact values are those of the design."""
    results = Store(ROOT / "results" / "paper").read()
    assert results.fact("mlp", "trace") == pytest.approx(2314.2322, abs=1e-3)
    assert results.fact("gru", "trace") == pytest.approx(223_056.46, abs=0.01)
    curve = results.curve("mlp", "hutch++", "trace")
    assert curve is not None
    errors = {m: row[row == row].min() for m, row in zip(curve.settings, curve.errors, strict=True)}
    assert errors[60] > 1e-4
    assert errors[324] < 1e-6
