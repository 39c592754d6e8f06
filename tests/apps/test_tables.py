"""Tables fit the output: no digit is cut at any width, in a terminal or a pipe."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import ntkscope
from ntkscope.apps.tables import Grid, alignment_grid, comparison_grid, kernel_grid, print_grid, report_grids
from ntkscope.report import Alignment, KernelNumbers, Report
from ntkscope.results import Cost, Estimate
from terminal import succeed, weights

METRICS = {
    "trace": Estimate(223060.12345, 0.0, "exact (per sample)", "trace"),
    "frobenius_norm": Estimate(31415.9, 12.3, "sketch, trace by per-sample", "frobenius_norm"),
    "effective_rank": Estimate(2718.2, None, "sketch", "effective_rank"),
}
COSINE = Estimate(0.98765432, 0.0000123, "sketch", "alignment")


def _report(count: int) -> Report:
    kernel = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))
    names = [f"checkpoint-{10 * place}" for place in range(count)]
    numbers = tuple(KernelNumbers(name, kernel, METRICS, Cost(60, seconds=1.5)) for name in names)
    pairs = [Alignment((a, b), COSINE) for place, a in enumerate(names) for b in names[place + 1 :]]
    return Report(numbers, tuple(pairs))


def _printed(grid: Grid, width: int, *, terminal: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    print_grid(console, grid)
    return out.getvalue()


def _cells(grid: Grid) -> list[str]:
    return [cell for row in grid.rows for cell in row]


@pytest.mark.parametrize("width", [30, 50, 80, 120])
@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_no_digit_is_cut_in_a_terminal(width: int, count: int) -> None:
    for grid in report_grids(_report(count)):
        output = _printed(grid, width)
        assert max(map(len, output.splitlines())) <= width
        assert "…" not in output
        for cell in _cells(grid):
            for number in re.findall(r"\d[\d.e+]*", cell):
                assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", output), (number, output)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_in_a_pipe_every_row_is_one_line(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for grid in report_grids(_report(count)):
        lines = [line.split() for line in _printed(grid, 80, terminal=False).splitlines()]
        for row in grid.rows:
            assert " ".join(row).split() in lines


def test_a_table_that_does_not_fit_is_turned_and_then_a_list() -> None:
    grid = Grid(("metric", "a", "b", "c"), (("trace", "123456", "123456", "123456"), ("rank", "1", "2", "3")))
    assert "trace" in _printed(grid, 40).splitlines()[3]
    turned = [line.split() for line in _printed(grid, 28).splitlines()]
    assert ["metric", "trace", "rank"] in turned
    assert ["a", "123456", "1"] in turned
    assert _printed(grid, 12).splitlines()[:2] == ["trace", "  a: 123456"]


def test_names_are_no_markup() -> None:
    grid = Grid(("[bold]x", "[/y]"), (("[red]", "[1, 2]"),), "[z]")
    assert all(text in _printed(grid, 80) for text in ("[bold]x", "[/y]", "[red]", "[1, 2]", "[z]"))


def test_what_the_grids_hold() -> None:
    report = _report(3)
    assert kernel_grid(report.kernels[0]).rows[0] == ("trace", "223060.1", "exact", "exact (per sample)")
    rows = {row[0]: row[1:] for row in comparison_grid(report).rows}
    assert rows["alignment with checkpoint-0"] == (
        "1",
        "0.987654 ± 0.000012",
        "0.987654 ± 0.000012",
        "sketch",
    )
    matrix = alignment_grid(report)
    assert matrix.columns == ("alignment", "checkpoint-0", "checkpoint-10", "checkpoint-20")
    assert [row[place + 1] for place, row in enumerate(matrix.rows)] == ["1", "1", "1"]
    assert matrix.rows[2][1] == "0.987654 ± 0.000012"


@pytest.mark.parametrize("width", ["30", "50", "80", None])
def test_a_real_comparison_through_a_pipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch, width: str | None
) -> None:
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", width)
    names = [f"a-checkpoint-with-a-long-name-at-step-{step}.safetensors" for step in (1, 2, 3)]
    for seed, name in enumerate(names):
        save_file(weights(seed), folder / name)
    command = ("compare", "toy_models:mlp", *names, "-i", "x.npz", "--method", "exact")
    output = succeed(*command)
    assert "…" not in output
    for metric in ("trace", "Frobenius norm", "effective rank", "alignment"):
        assert metric in output
    process = subprocess.run(
        [sys.executable, "-m", "ntkscope", *command], cwd=folder, capture_output=True, text=True, check=True
    )
    values = re.findall(r"\b\d+\.\d{4,}\b", process.stdout)
    assert len(values) >= 12
    assert "…" not in process.stdout
