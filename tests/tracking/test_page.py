"""The report: one page that needs nothing else, with every value to be read, whatever the log's state."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ntkscope import Tracker
from ntkscope.apps.cli import app
from ntkscope.tracking import read_runs, write_report
from ntkscope.tracking.page import plots_of
from tracking.training import run


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the same name in two folders, with layers, a loss and a hostile name in the settings."""
    paths = []
    for index, folder in enumerate(("one", "two")):
        path = tmp_path_factory.mktemp("logs") / folder / "run.jsonl"
        path.parent.mkdir()
        config = {"lr": 0.3 + index, "note": "<script>alert(1)</script>"}
        run(6, lambda t, path=path, config=config: Tracker(
            t.model, t.inputs, 2, targets=t.targets, log=path, by="layer", config=config
        ))  # fmt: skip
        paths.append(path)
    return paths


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "src", "xlink:href"):
                self.links.append(str(value))


def _invoke(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_one_page_needs_nothing_else(logs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = _invoke("report", *logs, "-o", out)
    assert result.exit_code == 0, result.output
    text = out.read_text(encoding="utf-8")
    page = _Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags
    assert "alert(1)" in text
    # Nothing is fetched: links lead into the page, or carry their data.
    for link in page.links:
        assert link.startswith("data:") or link[1:] in page.ids, link
    assert not re.search(r"url\((?!#)", text)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert len(text) < 6_000_000
    for words in ("one/run", "two/run", "prefers-color-scheme:dark", "@media print", "1.3"):
        assert words in text
    # Every figure says how it is read; no colour of a file is left.
    assert page.tags.count("figure") == page.tags.count("figcaption") == page.tags.count("svg")
    assert "#0072b2" not in text.split("</style>")[1]


def test_every_value_can_be_read(logs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    (found,) = read_runs(logs[0])
    write_report([found], out)
    said = re.findall(r"<title>([^<]+)</title>", out.read_text(encoding="utf-8"))
    for name in found.metrics:
        curve = found.curve(name)
        for step, value in zip(curve.steps, curve.values, strict=True):
            assert any(text.startswith(f"run, step {step}: {value:.5g}") for text in said), (name, step)
    _, matrix = found.alignment_matrix()
    assert f"steps 2 and 6: {matrix.values[1, 3]:.4f}" in said
    assert sum(text.startswith("steps ") for text in said) == 16


def test_what_all_runs_share_is_said_once(logs: list[Path], tmp_path: Path) -> None:
    write_report([run for log in logs for run in read_runs(log)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<tr><td>probes</td><td colspan="2">2</td></tr>' in text
    assert "<tr><td>lr</td><td>0.3</td><td>1.3</td></tr>" in text
    # A number and its error are not torn apart.
    assert " ± " not in text
    assert "\u00a0±\u00a0" in text


def test_matrices_of_a_report_have_the_same_colours(logs: list[Path]) -> None:
    plots = plots_of([run for log in logs for run in read_runs(log)])
    meshes = [plot.figure.axes[0].collections[0] for plot in plots if plot.key.startswith("alignment-")]
    low, high = meshes[0].get_clim()
    assert [mesh.get_clim() for mesh in meshes] == [(low, high)] * 2
    lowest = min(float(mesh.get_array().min()) for mesh in meshes)
    assert lowest - 0.1 <= low <= lowest
    assert high == 1


def test_figures_are_written(logs: list[Path], tmp_path: Path) -> None:
    result = _invoke("report", logs[0], "--figures", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"curve-trace.png", "curve-trace.svg", "alignment-0.png", "layers-trace-0.svg"} <= names


def test_what_is_wrong_with_a_log_is_on_the_page(logs: list[Path], tmp_path: Path) -> None:
    lines = logs[0].read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[2])
    record["metrics"]["trace"].update(value=None, not_finite={"value": "nan"})
    log = tmp_path / "broken.jsonl"
    log.write_text("\n".join([*lines[:2], json.dumps(record), *lines[3:]])[:-30], encoding="utf-8")
    result = _invoke("report", log, "-o", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        "What is wrong with the logs",
        "the last line, 5, is not whole",
        "line 3, step 2: not finite: trace",
        "no alignment matrix: ",  # the fingerprints were left behind
    ):
        assert words in text
    assert "the last line, 5, is not whole" in result.output


def test_errors_are_one_line(logs: list[Path], tmp_path: Path) -> None:
    for words, said in (
        (("none.jsonl",), "there is no log none.jsonl"),
        ((logs[0], "-o", tmp_path / "page.txt"), "its name must end in .html"),
    ):
        result = _invoke("report", *words)
        assert result.exit_code == 2
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_figure_of_the_tracker() -> None:
    trackers: list[Tracker] = []
    run(4, lambda t: trackers.append(Tracker(t.model, t.inputs, 2)) or trackers[0])
    figure = trackers[0].plot(["trace", "velocity"])
    assert [axis.get_title() for axis in figure.axes] == ["trace", "velocity"]
    with pytest.raises(ValueError, match="there is nothing to draw: no look has any of target_alignment"):
        trackers[0].plot(["target_alignment"])
