"""``ntkscope measure`` beyond three numbers: those of eigenvalues, and all in parts, in every width."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import ntkscope
from ntkscope.apps.tables import parts_grid, print_grid, report_grids
from ntkscope.report import KernelNumbers, Report
from ntkscope.results import Cost, Estimate, Split
from terminal import fail, reference, succeed

COMMAND = ("measure", "toy_models:mlp", "-i", "x.npz", "--checkpoint", "w1.safetensors")


def _json(*options: str) -> Any:
    (kernel,) = json.loads(succeed(*COMMAND, *options, "--json", "-"))["kernels"]
    return kernel


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_numbers_of_eigenvalues_are_metrics(folder: Path, method: str) -> None:
    names = ["trace", "operator_norm", "stable_rank", "entropy"]
    kernel = _json("--metrics", ",".join(reversed(names)), "--method", method)
    assert list(kernel["metrics"]) == names
    assert kernel["splits"] == {}
    values = torch.linalg.eigvalsh(reference(1, folder).to_dense().double())
    p = values.clamp(min=1e-300) / values.sum()
    expected = {
        "trace": values.sum(),
        "operator_norm": values[-1],
        "stable_rank": values.square().sum() / values[-1] ** 2,
        "entropy": -(p * p.log()).sum(),
    }
    for name, value in expected.items():
        found = ntkscope.Estimate.from_dict(kernel["metrics"][name])
        assert found.quantity == name
        assert found.value == pytest.approx(float(value), rel=1e-4)
    assert "stable rank" in succeed(*COMMAND, "--metrics", "stable_rank")


def test_one_of_eigenvalues_alone_and_a_budget(folder: Path) -> None:
    for name in ("operator_norm", "stable_rank", "entropy"):
        kernel = _json("--metrics", name, "--products", "400", "--seed", "3")
        assert list(kernel["metrics"]) == [name]


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("layer", ["0", "2"]),
        ("parameter", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("sample", list("01234")),
        ("output", list("012")),
        ("*.weight", ["*.weight", "rest"]),
        ("*.weight, *.bias", ["*.weight", "*.bias"]),
    ],
)
def test_parts_are_in_the_table_and_the_json(folder: Path, by: str, names: list[str]) -> None:
    options = ("--metrics", "trace,stable_rank", "--by", by)
    kernel = _json(*options)
    split = Split.from_dict(kernel["splits"]["trace"])
    assert list(split) == names
    assert split.whole is not None
    assert sum(map(float, split.values())) == pytest.approx(split.whole.value, rel=1e-6)
    assert kernel["metrics"]["trace"]["value"] == split.whole.value
    output = succeed(*COMMAND, *options)
    assert "stable rank" in output
    assert "share of trace" in output
    for name, value, share in split.rows():
        assert re.search(rf"{re.escape(name)} +{re.escape(value)} +{re.escape(share)}", output), name


def test_norms_and_ranks_of_layers(folder: Path) -> None:
    kernel = _json("--by", "layer", "--method", "exact")
    expected = reference(1, folder).split("frobenius_norm", method="exact")
    found = Split.from_dict(kernel["splits"]["frobenius_norm"])
    assert list(kernel["splits"]) == ["trace", "frobenius_norm", "effective_rank"]
    for name, part in expected.items():
        assert found[name].value == pytest.approx(part.value, rel=1e-5)
    without = succeed(*COMMAND, "--metrics", "effective_rank", "--by", "layer")
    assert "share" not in without


def test_numbers_of_eigenvalues_are_drawn(folder: Path) -> None:
    succeed(*COMMAND, "--metrics", "operator_norm,entropy", "--plot", "out.png")
    assert (folder / "out.png").stat().st_size > 10_000


WRONG = {
    "--by layers": "unknown --by 'layers'; choose from layer, parameter, sample, output, or give patterns",
    "--by *.nothing": "no parameter matches '*.nothing'",
    "--metrics entropy --by layer": "add one of them to --metrics",
    "--metrics trace --method hutch++ --by layer": "method 'hutch++' gives no parts; choose from auto, exact",
    "--metrics entropy --method sketch": "method 'sketch' gives no entropy; choose from auto, exact",
    "--metrics rank": "choose from trace, frobenius_norm, effective_rank, operator_norm, stable_rank, ent",
}


@pytest.mark.parametrize(("options", "message"), WRONG.items())
def test_what_cannot_be_is_said(folder: Path, options: str, message: str) -> None:
    assert message in fail(*COMMAND, *options.split())


# In a terminal of any width.


def _numbers() -> KernelNumbers:
    kernel = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))
    names = ["encoder.layers.0.self_attn", "encoder.layers.0.linear1", "head"]
    traces = [Estimate(223060.12, 12.3, "per-sample"), Estimate(31415.9, 1.5), Estimate(2718.28, None)]
    whole = Estimate(257194.3, 9.0)
    split = Split(dict(zip(names, traces, strict=True)), whole)
    return KernelNumbers("now", kernel, {"trace": whole}, Cost(60), {"trace": split})


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_no_digit_of_a_part_is_cut(width: int) -> None:
    for grid in report_grids(Report((_numbers(),))):
        out = io.StringIO()
        print_grid(Console(file=out, width=width, force_terminal=True, color_system=None), grid)
        output = out.getvalue()
        assert max(map(len, output.splitlines())) <= width
        assert "…" not in output
        for row in grid.rows:
            for number in re.findall(r"\d[\d.e+]*", " ".join(row[1:])):
                assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", output), (number, output)


def test_in_a_pipe_every_part_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    grid, out = parts_grid(_numbers()), io.StringIO()
    print_grid(Console(file=out, width=40, force_terminal=False), grid)
    lines = [line.split() for line in out.getvalue().splitlines()]
    for row in grid.rows:
        assert " ".join(row).split() in lines
    assert [row[2] for row in grid.rows] == ["86.7%", "12.2%", "1.06%"]
