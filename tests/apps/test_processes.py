"""The command line under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ntkscope.apps.processes import is_first, own_share, several

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)

FACTORY = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(7, 6)


def large():
    torch.manual_seed(0)
    widths = (64, 1500, 1500, 1500, 10)
    layers = [x for a, b in zip(widths, widths[1:]) for x in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), torch.randn(3000, 64)
"""


def _command(*words: str, launcher: bool = True) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if launcher else []
    return [sys.executable, *torchrun, "-m", "ntkscope", *words]


def _environment(folder: Path) -> dict[str, str]:
    (folder / "spreadfactory.py").write_text(FACTORY)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts the second of two processes."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_one_process_has_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    x = torch.arange(5)
    assert not several()
    assert is_first()
    assert own_share(x, 0) is x


def test_samples_are_shared_in_order(two: None) -> None:
    assert several()
    assert not is_first()
    shared = own_share({"x": torch.arange(5), "scale": torch.tensor(2.0)}, 0)
    assert shared["x"].tolist() == [3, 4]
    assert shared["scale"] == 2
    assert own_share((torch.ones(3, 5),), 1)[0].shape == (3, 2)


def test_too_few_samples_and_coupled_ones_are_errors(two: None) -> None:
    with pytest.raises(ValueError, match="2 processes have 1 samples to share; start fewer"):
        own_share(torch.ones(1, 3), 0)
    with pytest.raises(ValueError, match="measure them on one process"):
        own_share(torch.ones(4, 3), None)


@needs_gloo
def test_two_processes_say_once_what_one_says(tmp_path: Path) -> None:
    found = {}
    for world, launcher in ((1, False), (2, True)):
        words = ("measure", "spreadfactory:make", "--json", f"{world}.json")
        done = subprocess.run(
            _command(*words, launcher=launcher),
            cwd=tmp_path,
            env=_environment(tmp_path),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert done.stdout.count("effective rank") == 1
        metrics = json.loads((tmp_path / f"{world}.json").read_text())["kernels"][0]["metrics"]
        found[world] = {name: metric["value"] for name, metric in metrics.items()}
    assert found[2] == pytest.approx(found[1], rel=1e-5)


@needs_gloo
def test_an_error_is_said_once(tmp_path: Path) -> None:
    done = subprocess.run(
        _command("measure", "spreadfactory:make", "--method", "none"),
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert done.stderr.count("ntkscope: ") == 1


@needs_gloo
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
@pytest.mark.parametrize("moment", range(10))
def test_a_killed_process_ends_the_other(tmp_path: Path, moment: int) -> None:
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        run = subprocess.Popen(
            _command("measure", "spreadfactory:large", "--method", "exact", "--json", "found.json"),
            cwd=tmp_path,
            env=_environment(tmp_path),
            stdout=out,
            stderr=out,
        )
        time.sleep(6 + 0.7 * moment)
        children = subprocess.run(
            ["pgrep", "-P", str(run.pid), "-f", "ntkscope measure"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        os.kill(int(children[moment % 2]), signal.SIGKILL)
        assert run.wait(timeout=60) != 0
    said = [line for line in log.read_text().splitlines() if line.startswith("ntkscope: ")]
    assert len(said) == 1
    assert "another one has ended or failed" in said[0] or "has lost another one" in said[0]
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert files == {"log.txt", "spreadfactory.py"}
