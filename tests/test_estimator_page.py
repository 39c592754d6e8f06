"""The numbers of docs/estimators.md are those of the measurements in results/estimators."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "estimator_tables.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs the source tree")


def test_the_page_is_what_the_script_writes():
    script = runpy.run_path(str(SCRIPT))
    page = script["PAGE"].read_text()
    assert script["filled"](page) == page, "run: python scripts/estimator_tables.py"


def test_every_table_is_on_the_page():
    script = runpy.run_path(str(SCRIPT))
    page = script["PAGE"].read_text()
    for name in script["TABLES"]:
        assert f"<!-- table: {name} -->" in page
