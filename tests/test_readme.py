from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

import ntkscope
from ntkscope import report
from ntkscope.apps import options
from ntkscope.apps.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _numbers(output: str) -> dict[str, float]:
    """The value in each row of a printed measurement or estimate."""
    rows = re.findall(r"^([a-z ]*?) *(\d[\d.]*)(?: ± [\d.]+)? \(", output, re.MULTILINE)
    return {name: float(value) for name, value in rows}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_blocks_run(page: Path) -> None:
    names: dict[str, object] = {}
    for block in _blocks(page.read_text(encoding="utf-8"), "python"):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, page.name, "exec"), names)


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "recurrent.py"))
    assert "n=48,000" in capsys.readouterr().out


def test_the_readme_prints_what_it_says() -> None:
    names: dict[str, object] = {}
    pairs = list(zip(_blocks(README, "python"), _blocks(README, "text"), strict=True))
    assert len(pairs) == 2
    for code, said in pairs:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        found, expected = _numbers(out.getvalue()), _numbers(said)
        assert found.keys() == expected.keys()
        assert found
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=0.03), name


def test_the_users_own_model_takes_six_lines_besides_the_model() -> None:
    code = _blocks(README, "python")[0]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len([line for line in lines if "ntk" in line]) <= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_that_are_shown_exist(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for block in _blocks(page.read_text(encoding="utf-8"), "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["ntkscope"]:
                continue
            known = {name for parameter in commands[words[1]].params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_dependency_is_in_the_table() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.split("## Dependencies")[1].split("## ")[0]
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["paper"]):
        name = re.match(r"[\w-]+", requirement)
        assert name is not None
        assert f"| {name[0]} " in table
    for extra in project["optional-dependencies"]:
        assert extra in table


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    missing = [
        name for name in ntkscope.__all__ if not name.startswith("_") and f"::: ntkscope.{name}\n" not in page
    ]
    assert missing == []
    for module in ("estimators", "plots"):
        (members,) = re.findall(rf"::: ntkscope\.{module}\n(?:.*\n)*?      members: \[(.*)\]", page)
        listed = set(members.split(", "))
        names = vars(importlib.import_module(f"ntkscope.{module}"))
        assert listed <= {name for name in names["__all__"] if inspect.isfunction(names[name])}


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1]
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert set(re.findall(r": (\S+\.md)", navigation)) == pages


def test_what_is_named_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    for requirement in (*project["dependencies"], *extras):
        name = re.match(r"[\w-]+", requirement)
        assert name is not None
        assert name[0] == "ntkscope" or name[0] in pins
    assert all("+" not in version for version in pins.values())


def test_the_json_page_describes_the_schema() -> None:
    page = (ROOT / "docs" / "json.md").read_text()
    assert f"| `schema_version` | {report.SCHEMA_VERSION} |" in page


def test_metrics_are_parsed_in_order() -> None:
    assert options.parse_metrics("effective_rank, trace") == ("trace", "effective_rank")
    with pytest.raises(ValueError, match="unknown metric 'rank'; choose from trace, frobenius_norm"):
        options.parse_metrics("trace,rank")


@pytest.mark.skipif(not (ROOT / "results" / "speed.json").exists(), reason="no speed has been measured")
def test_the_table_of_speed_is_read_from_the_results() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "benchmark_table.py"))
    results = json.loads((ROOT / "results" / "speed.json").read_text(encoding="utf-8"))
    assert script["page"](README, results) == README
