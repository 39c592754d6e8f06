"""The tutorials say what their code finds, as a script of a stranger and as notebooks."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = runpy.run_path(str(ROOT / "scripts" / "tutorials.py"))
PAGES: dict[str, Path] = {page.stem: page for page in SCRIPTS["PAGES"]}


def _found(name: str, folder: Path, wanted: str) -> dict[str, Any]:
    """Copies the page's code into a file, runs it in a process and a folder of its own, and asks."""
    code = SCRIPTS["script"](PAGES[name].read_text(encoding="utf-8"))
    file = folder / f"{name}.py"
    file.write_text(f"{code}\nimport json\nprint(json.dumps({wanted}))\n", encoding="utf-8")
    command = [sys.executable, "-W", "error", file.name]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_lazy_and_rich_training_are_told_apart(tmp_path: Path) -> None:
    wanted = "{t.run.name: {n: t.run.curve(n).values.tolist() for n in shown} for t in (lazy, rich)}"
    found = _found("lazy-or-rich", tmp_path, wanted)
    lazy, rich = found["lazy"], found["rich"]
    assert min(lazy["alignment_start"]) > 0.999
    assert rich["alignment_start"][-1] < 0.85
    grown = [one["target_alignment"][-1] - one["target_alignment"][0] for one in (lazy, rich)]
    assert abs(grown[0]) < 1e-3
    assert grown[1] > 0.015
    assert (tmp_path / "lazy-rich.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "lazy-rich.html").read_text(encoding="utf-8")


def test_the_effective_rank_grows_as_a_network_learns_to_remember(tmp_path: Path) -> None:
    wanted = (
        "{'steps': [look.step for look in tracker.looks], 'last': last.interval(0.99), 'exact': exact.value,"
        " 'rank': tracker.run.curve('effective_rank').values.tolist(),"
        " 'trace': tracker.run.curve('trace').values.tolist(),"
        " 'right': tracker.run.curve('bits_that_are_right').values.tolist()}"
    )
    found = _found("flip-flop", tmp_path, wanted)
    rank = dict(zip(found["steps"], found["rank"], strict=True))
    trace = dict(zip(found["steps"], found["trace"], strict=True))
    # The page's three phases.
    assert 3 < rank[0] < 4
    assert rank[20] < 2
    assert trace[20] > 10 * trace[0]
    assert all(4 < rank[step] < 7 for step in (40, 60, 80, 100))
    assert all(rank[step] > 12 for step in range(160, 301, 20))
    assert trace[160] < 0.5 * trace[100]
    assert min(found["right"][1:]) > 0.9
    assert found["right"][-1] > 0.995
    low, high = found["last"]
    assert low < found["exact"] < high
    assert (tmp_path / "flip-flop.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", PAGES)
def test_a_notebook_is_its_page(name: str) -> None:
    """It has the same cells, and was run as it is; make it by ``python scripts/tutorials.py``."""
    page = PAGES[name]
    made = SCRIPTS["notebook"](page.read_text(encoding="utf-8"))
    kept = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    shown = [output for cell in kept["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    for cell in kept["cells"]:
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell.update(execution_count=None, outputs=[])
    assert kept["cells"] == made["cells"]
    assert kept["nbformat"] == made["nbformat"]


@pytest.mark.parametrize("name", PAGES)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    made = SCRIPTS["notebook"](PAGES[name].read_text(encoding="utf-8"))
    for cell in made["cells"]:
        # What it finds is tested above.
        cell["source"] = re.sub(r"(range\(|steps=)300\b", r"\g<1>20", cell["source"])
    node = SCRIPTS["run"](made, tmp_path)
    outputs = [output for cell in node["cells"] for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert f"{name}.ipynb" in targets
    for target in targets:
        assert (page.parent / target).exists(), target
