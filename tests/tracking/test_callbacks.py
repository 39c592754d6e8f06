"""Callbacks: with the real packages where they are installed, and what they share without them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ntkscope.tracking import read_runs
from ntkscope.tracking.hook import Hook
from tracking.training import Training, problem


def test_a_loop_that_counts_itself(tmp_path: Path) -> None:
    """Steps that do not rise, as in accumulation, are none; steps may come two at once."""
    training = Training()
    log = tmp_path / "run.jsonl"
    hook = Hook(training.inputs.numpy(), {"every": 3, "log": log})
    hook.after(1)
    hook.begin(training.model, 0)
    for step in (0, 1, 1, 2, 4, 4, 5, 7):
        hook.after(step, loss=1.0)
    assert hook.tracker is not None
    assert [look.step for look in hook.tracker.looks] == [0, 4, 7]
    again = Hook(training.inputs, {"every": 3, "log": log})
    again.begin(training.model, 7)
    for step in (8, 9, 10):
        again.after(step)
    assert [look.step for look in read_runs(log)[0].looks] == [0, 4, 7, 9]
    # Without its log a run counts from where it goes on.
    late = Hook({"input": training.inputs}, {"every": 3})
    late.begin(training.model, 100)
    late.after(103)
    assert late.tracker is not None
    assert [look.step for look in late.tracker.looks] == [0, 3]


class _Lightning:
    """A small module of Lightning and what trains it, if Lightning is installed."""

    def __init__(self, folder: Path) -> None:
        self.lightning: Any = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
        # What it says of the machine and of small data is not of this test.
        warnings.filterwarnings("ignore", module="lightning|lightning_utilities")
        self.folder = folder
        _, self.inputs, self.targets = problem()
        rows = torch.utils.data.TensorDataset(self.inputs, self.targets)
        self.data = torch.utils.data.DataLoader(rows, batch_size=3)

    def module(self, dropout: float = 0.2) -> Any:
        class Module(self.lightning.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.model = problem()[0]
                self.model[3].p = dropout
                self.validated = 0

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.model(x)

            def training_step(self, batch: Any, index: int) -> torch.Tensor:
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

            def validation_step(self, batch: Any, index: int) -> None:
                self.validated += 1
                for callback in self.trainer.callbacks:
                    if hasattr(callback, "tracker") and callback.tracker is not None:
                        assert not torch.is_grad_enabled()
                        callback.tracker.update()

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        self.lightning.seed_everything(0, verbose=False)
        return Module()

    def trainer(self, *callbacks: Any, epochs: int = 3) -> Any:
        return self.lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=self.folder,
            callbacks=list(callbacks),
        )  # fmt: skip


@pytest.mark.filterwarnings("default")
def test_lightning_trains_as_without(tmp_path: Path) -> None:
    """The same parameters to the last bit, with looks in the training and the validation loop."""
    small = _Lightning(tmp_path)
    from ntkscope.tracking.lightning import TrackerCallback

    log = tmp_path / "run.jsonl"
    watched = TrackerCallback(small.inputs, every=2, targets=small.targets, log=log)
    found = []
    for callbacks in ([], [watched]):
        module = small.module()
        trainer = small.trainer(*callbacks)
        trainer.fit(module, small.data, small.data)
        # Alone it runs in inference mode.
        trainer.validate(module, small.data, verbose=False)
        assert module.validated > 3
        found.append([p.clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    (run,) = read_runs(log)
    assert not run.problems
    steps = [look.step for look in run.looks]
    batches = len(small.data)
    # Validation looks where training did not, and steps are those of the optimiser.
    assert steps == list(range(0, 3 * batches + 1, 2))
    losses = [look.values["loss"] for look in run.looks if "loss" in look.values]
    assert len(losses) == len(steps) - 1
    assert min(losses) > 0


@pytest.mark.filterwarnings("default")
def test_a_run_of_lightning_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    small = _Lightning(tmp_path)
    from ntkscope.tracking.lightning import TrackerCallback

    def train(log: Path, epochs: int, checkpoint: Path | None = None) -> Any:
        trainer = small.trainer(TrackerCallback(small.inputs, every=2, log=log), epochs=epochs)
        # Its checkpoints have no random states.
        trainer.fit(small.module(dropout=0.0), small.data, ckpt_path=checkpoint)
        return trainer

    logs = [tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"]
    train(logs[0], 4)
    train(logs[1], 2).save_checkpoint(tmp_path / "half.ckpt")
    train(logs[1], 4, tmp_path / "half.ckpt")
    _are_one_curve(*logs)


def _are_one_curve(*logs: Path) -> None:
    """A run that was stopped and taken up has the looks of one that was not."""
    whole, halves = (read_runs(log)[0].looks for log in logs)
    assert [look.step for look in halves] == [look.step for look in whole]
    assert len(whole) >= 4
    for one, two in zip(whole, halves, strict=True):
        assert two.metrics["alignment_start"].value == one.metrics["alignment_start"].value


class _Classifier(nn.Module):
    """A model as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = problem()[0]

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.model(x)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


class _Transformers:
    """A Trainer of a small model, if transformers are installed."""

    def __init__(self, folder: Path) -> None:
        self.transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
        pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed")
        self.folder = folder
        _, self.inputs, targets = problem()
        self.rows = [{"x": x, "labels": y} for x, y in zip(self.inputs, targets, strict=True)]

    def callback(self, log: Path) -> Any:
        from ntkscope.tracking.transformers import TrackerCallback

        return TrackerCallback({"x": self.inputs}, every=2, log=log, outputs=lambda y: y["logits"])

    def train(self, *callbacks: Any, steps: int = 6, resume: str | None = None, **settings: Any) -> nn.Module:
        self.transformers.set_seed(0)
        model = _Classifier()
        arguments = self.transformers.TrainingArguments(
            self.folder / "out", max_steps=steps, per_device_train_batch_size=3, report_to=[], use_cpu=True,
            disable_tqdm=True, **({"save_strategy": "no"} | settings),
        )  # fmt: skip
        trainer = self.transformers.Trainer(
            model, arguments, train_dataset=self.rows, eval_dataset=self.rows, callbacks=list(callbacks)
        )
        trainer.train(resume_from_checkpoint=resume)
        return model


@pytest.mark.filterwarnings("default")
def test_transformers_train_as_without(tmp_path: Path) -> None:
    small, log = _Transformers(tmp_path), tmp_path / "run.jsonl"
    found = [
        [p.clone() for p in small.train(*callbacks, eval_strategy="steps", eval_steps=3).parameters()]
        for callbacks in ([], [small.callback(log)])
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert [look.step for look in read_runs(log)[0].looks] == [0, 2, 4, 6]


@pytest.mark.filterwarnings("default")
def test_a_run_of_transformers_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    small, logs = _Transformers(tmp_path), [tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"]
    settings = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    small.train(small.callback(logs[0]), steps=8, **settings)
    small.train(small.callback(logs[1]), steps=4, **settings)
    small.train(small.callback(logs[1]), steps=8, resume=str(tmp_path / "out" / "checkpoint-4"), **settings)
    _are_one_curve(*logs)
