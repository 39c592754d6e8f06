"""The tracker: its numbers against dense references, when it looks, and that training does not notice."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ntkscope
from ntkscope import NTK, Tracker
from ntkscope.tracking import schedule
from ntkscope.tracking.observer import Observer
from tracking.training import BATCH, Training, problem, run


def _dense(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """K by torch.func.jacrev, in float64 and evaluation mode."""
    parameters = {name: p.detach().double() for name, p in model.named_parameters()}
    buffers = {name: b.double() if b.is_floating_point() else b for name, b in model.named_buffers()}

    def state(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, (parameters, buffers), (inputs.double(),)).reshape(-1)

    modes = model.training
    model.eval()
    jacobian = torch.func.jacrev(state)(parameters)
    model.train(modes)
    J = torch.cat([part.flatten(1) for part in jacobian.values()], dim=1)
    return J @ J.T


def test_the_numbers_are_those_of_the_dense_kernels() -> None:
    training = Training()
    tracker = Tracker(training.model, training.inputs, 5, targets=training.targets, probes=64)
    kernels = [_dense(training.model, training.inputs)]
    for _ in range(10):
        training.step()
        if tracker.step():
            kernels.append(_dense(training.model, training.inputs))
    start, last, now = kernels
    y = nn.functional.one_hot(training.targets, 3).double().reshape(-1)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a * b).sum() / (a.norm() * b.norm()))

    truth = {
        "trace": float(now.trace()),
        "frobenius_norm": float(now.norm()),
        "effective_rank": float(now.trace() ** 2 / now.norm() ** 2),
        "alignment_start": cosine(now, start),
        "alignment_last": cosine(now, last),
        "velocity": 1 - cosine(now, last),
        "target_alignment": float(y @ now @ y / (now.norm() * (y @ y))),
    }
    found = tracker.compute()
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        error = found[name].stderr
        assert error is not None
        assert 0 < error < 0.2 * value, name
        assert abs(found[name].value - value) < 4 * error, name


def test_the_layers_are_the_kernels_of_their_parameters_alone() -> None:
    model, inputs, targets = problem()
    tracker = Tracker(model, inputs, targets=targets, by="layer", probes=64)
    look = tracker.looks[0]
    assert list(look.layers) == ["0", "1", "4"]
    assert sum(layer["trace"].value for layer in look.layers.values()) == pytest.approx(
        look.metrics["trace"].value, rel=1e-6
    )
    y = nn.functional.one_hot(targets, 3).double().reshape(-1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("4."))
    alone = NTK(model.eval(), inputs).to_dense().double()
    model.requires_grad_(True)
    truth = float(y @ alone @ y / (alone.norm() * (y @ y)))
    found = look.layers["4"]["target_alignment"]
    assert abs(found.value - truth) < 4 * (found.stderr or 0)


def _state(training: Training) -> list[Any]:
    model, optimizer = training.model, training.optimizer
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    tensors += [value["momentum_buffer"] for value in optimizer.state_dict()["state"].values()]
    return [tensor.clone() for tensor in tensors]


def test_training_is_the_same_to_the_last_bit() -> None:
    """Losses, parameters, gradients, buffers, the optimiser's state and every generator."""
    found = []
    for watch in (None, lambda t: Tracker(t.model, t.inputs, 1, targets=t.targets, by="layer")):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - it is the global state that is watched
        training = run(8, watch)
        after = (random.random(), np.random.rand(), torch.rand(3).tolist())  # noqa: NPY002
        modes = [module.training for module in training.model.modules()]
        found.append((training.losses, _state(training), after, modes))
    without, watched = found
    assert without[0] == watched[0]
    assert all(torch.equal(a, b) for a, b in zip(without[1], watched[1], strict=True))
    assert without[2:] == watched[2:]


def test_modes_come_back_one_by_one() -> None:
    model, inputs, _ = problem()
    model[1].eval()
    tracker = Tracker(model, inputs)
    tracker.update()
    assert [m.training for m in model] == [True, False, True, True, True]
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    tracker.steps = 99
    with pytest.warns(RuntimeWarning, match=r"no look at step 100: ValueError: .*finite"):
        tracker.step()
    assert [m.training for m in model] == [True, False, True, True, True]
    assert list(tracker.run.failures) == [100]


def test_it_looks_where_validation_runs() -> None:
    model, inputs, _ = problem()
    tracker = Tracker(model, inputs, 1)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            tracker.step()
    values = [look.metrics["trace"].value for look in tracker.looks]
    assert len(values) == 3
    assert values[0] == values[1] == values[2]


def test_fixed_steps() -> None:
    looks = []
    run(12, lambda t: looks.append(Tracker(t.model, t.inputs, 5)) or looks[0])
    assert [look.step for look in looks[0].looks] == [0, 5, 10]


def test_the_share_of_the_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: a step takes 1 s, a look 4 s."""
    time = [0.0]
    monkeypatch.setattr(schedule.Stopwatch.__init__, "__defaults__", (0.0, lambda: time[0]))
    measure = Observer.measure

    def slow(*args: Any) -> Any:
        time[0] += 4
        return measure(*args)

    monkeypatch.setattr(Observer, "measure", slow)
    model, inputs, _ = problem()
    tracker = Tracker(model, inputs, "auto", metrics=("trace",), overhead=0.1)
    for _ in range(400):
        time[0] += 1
        tracker.step()
        assert tracker.overhead <= 0.1
    assert [look.step for look in tracker.looks[:4]] == [0, 40, 80, 120]
    assert len(tracker.looks) == 11


def test_as_users_of_torchmetrics_expect() -> None:
    model, inputs, _ = problem()
    tracker = Tracker(model, inputs, metrics=("trace", "alignment_start"))
    tracker.update()
    tracker.update()
    assert [look.step for look in tracker.looks] == [0, 1, 2]
    assert tracker.compute()["alignment_start"].value == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        model[0].weight.add_(1)
    tracker.update()
    assert tracker.compute()["alignment_start"].value < 1
    tracker.reset()
    assert [look.step for look in tracker.looks] == [0]
    assert tracker.compute()["alignment_start"].value == 1


def test_a_look_between_steps_is_at_the_step_that_was_counted() -> None:
    """As in a validation loop, which may look before training does and after it."""
    training = Training()
    tracker = Tracker(training.model, training.inputs, every=4)
    for _ in range(6):
        training.step()
        tracker.step()
        if tracker.steps in (3, 4):
            assert tracker.update().step == tracker.steps
            assert tracker.update() is tracker.looks[-1]
    assert [look.step for look in tracker.looks] == [0, 3, 4]
    assert tracker.update().step == 6


def test_sinks_get_every_number(tmp_path: Path) -> None:
    class Writer:
        def __init__(self) -> None:
            self.seen: list[tuple[str, float, int]] = []

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.seen.append((name, value, step))

    class Logger:
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def log(self, numbers: dict[str, float]) -> None:
            self.seen.append(numbers)

    model, inputs, _ = problem()
    plain: list[dict[str, float]] = []
    writer, logger = Writer(), Logger()
    log = [plain.append, writer, logger, tmp_path / "run.jsonl"]
    tracker = Tracker(model, inputs, 1, metrics=("trace",), log=log)
    tracker.step(loss=torch.tensor(2.0, requires_grad=True))
    assert plain == logger.seen
    assert list(plain[1]) == ["step", "ntk/trace", "ntk/trace/stderr", "loss"]
    assert ("loss", 2.0, 1) in writer.seen
    assert (tmp_path / "run.jsonl").exists()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "metric": ({"metrics": ("rank",)}, ValueError, "unknown metric 'rank'; choose from 'alignment_start'"),
    "every": ({"every": 0}, ValueError, "every must be at least 1, found 0; use 'auto'"),
    "every-kind": ({"every": "often"}, TypeError, "whole number of steps or 'auto'"),
    "overhead": ({"overhead": 5}, ValueError, "between 0 and 1, found 5; use 0.05"),
    "log": ({"log": 3}, TypeError, "log must be a path, a function of a dict"),
    "two-logs": ({"log": ["a.jsonl", "b.jsonl"]}, ValueError, "two files, a.jsonl and b.jsonl"),
    "targets": ({"targets": torch.ones(4)}, ValueError, r"targets have shape \(4,\), expected the state's"),
    "classes": ({"targets": torch.full((BATCH,), 3)}, ValueError, "classes from 3 to 3, expected 0 to 2"),
    "zero": ({"targets": torch.zeros(BATCH, 3)}, ValueError, "‖y‖² = 0.0, expected a positive number"),
    "words": ({"targets": ["a"]}, TypeError, "targets must be a tensor or an array of numbers"),
    "resume": ({"resume": 4}, ValueError, "resume= goes on with a log, and there is none"),
    "resume-kind": ({"resume": 1.5}, TypeError, "a step must be a whole number, found 1.5"),
}


@pytest.mark.parametrize(("options", "kind", "words"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    model, inputs, _ = problem()
    with pytest.raises(kind, match=words):
        Tracker(model, inputs, **options)
    assert model.training


def test_regression_targets_and_classes_are_told_apart() -> None:
    model, inputs, classes = problem()
    by_class = Tracker(model, inputs, targets=classes.numpy()).compute()["target_alignment"].value
    one_hot = nn.functional.one_hot(classes, 3).float()
    assert Tracker(model, inputs, targets=one_hot).compute()["target_alignment"].value == by_class


def test_it_is_public() -> None:
    assert "Tracker" in ntkscope.__all__
