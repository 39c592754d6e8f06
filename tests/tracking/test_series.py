"""Checkpoints after the fact: the curves that a tracker would have drawn, in the order that people mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ntkscope import NTK, Tracker
from ntkscope.apps.cli import app
from ntkscope.tracking import natural_order, read_runs, steps_of, watch_series
from tracking.training import Training

FACTORY = "tracking.training:problem_model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tracker]:
    """A folder of checkpoints, and the tracker that watched the run."""
    folder = tmp_path_factory.mktemp("series")
    training = Training()
    tracker = Tracker(training.model, training.inputs, 3, targets=training.targets, by="layer")
    np.savez(folder / "data.npz", training.inputs.numpy())
    np.save(folder / "targets.npy", training.targets.numpy())
    for _ in range(13):
        if training.steps % 3 == 0:
            torch.save(training.model.state_dict(), folder / f"step{training.steps}.pt")
        training.step()
        tracker.step()
    return folder, tracker


def _invoke(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_curves_are_those_of_a_tracker(trained: tuple[Path, Tracker], tmp_path: Path) -> None:
    folder, tracker = trained
    log, out = tmp_path / "after.jsonl", tmp_path / "report.html"
    result = _invoke(
        "track", FACTORY, "--inputs", folder / "data.npz", "--targets", folder / "targets.npy",
        "--checkpoints", folder / "step*.pt", "--by-layer", "--log", log, "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (found,) = read_runs(log)
    assert found.problems == ()
    assert [look.step for look in found.looks] == [0, 3, 6, 9, 12]
    for ours, theirs in zip(found.looks, tracker.looks, strict=True):
        for one, other in [(ours.metrics, theirs.metrics), (ours.layers["4"], theirs.layers["4"])]:
            assert one.keys() == other.keys()
            for name in one:
                assert one[name].value == pytest.approx(other[name].value, rel=1e-5, abs=1e-8)
    assert "Alignment of all moments: after" in out.read_text(encoding="utf-8")
    assert found.alignment_matrix()[1].values.shape == (5, 5)
    assert result.output.splitlines()[0].startswith("step 0: trace ")
    again = _invoke("track", FACTORY, "-i", folder / "data.npz", "-c", folder / "step*.pt", "--log", log)
    assert again.exit_code == 2
    assert "holds a run already" in again.stderr


def test_errors_are_one_line(trained: tuple[Path, Tracker], tmp_path: Path) -> None:
    folder, _ = trained
    pair = tmp_path / "pair.npz"
    np.savez(pair, np.ones(2), np.ones(2))
    for words, said in (
        (("-c", folder / "none*.pt"), "no checkpoint is named"),
        (("-c", folder / "step3.pt", "--targets", pair), "holds 2 arrays, expected one"),
    ):
        result = _invoke("track", FACTORY, "-i", folder / "data.npz", *words)
        assert result.exit_code == 2
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_natural_order_and_steps() -> None:
    names = ["run/step10.pt", "run/step9.pt", "run/step100.pt", "run/last.pt"]
    assert [path.name for path in natural_order(names)] == ["last.pt", "step9.pt", "step10.pt", "step100.pt"]
    assert steps_of([Path("step9.pt"), Path("step10.pt")]) == [9, 10]
    assert steps_of([Path("step9.pt"), Path("last.pt")]) == [0, 1]
    assert steps_of([Path("a-1.pt"), Path("b-1.pt")]) == [0, 1]


def test_what_was_seen_before_an_interruption_is_kept() -> None:
    def moments() -> Iterator[tuple[nn.Module, NTK]]:
        model = nn.Linear(3, 2)
        yield model, NTK(model, torch.eye(3))
        raise KeyboardInterrupt

    run = watch_series(moments(), [0, 1, 2])
    assert [look.step for look in run.looks] == [0]
    assert list(run.problems) == ["interrupted after 1 of 3 checkpoints"]
    with pytest.raises(KeyboardInterrupt):
        watch_series(iter(_interrupted()), [0])


def _interrupted() -> Iterator[tuple[nn.Module, NTK]]:
    raise KeyboardInterrupt
    yield
