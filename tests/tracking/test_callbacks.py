"""Callbacks: with the real packages where they are installed, and what they share without them."""

from __future__ import annotations

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


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from ntkscope.tracking.lightning import TrackerCallback

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = problem()[0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            for callback in self.trainer.callbacks:
                if isinstance(callback, TrackerCallback) and callback.tracker is not None:
                    callback.tracker.update()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    _, inputs, targets = problem()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=3)
    found = []
    for watched in (False, True):
        lightning.seed_everything(0, verbose=False)
        module = Module()
        callback = TrackerCallback(inputs, every=2, targets=targets, log=tmp_path / "run.jsonl")
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            callbacks=[callback] if watched else [],
        )  # fmt: skip
        trainer.fit(module, data, data if watched else None)
        found.append([p.clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(read_runs(tmp_path / "run.jsonl")[0].looks) >= 4


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from ntkscope.tracking.transformers import TrackerCallback

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = problem()[0]

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            logits = self.model(x)
            loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
            return {**loss, "logits": logits}

    _, inputs, targets = problem()
    rows = [{"x": x, "labels": y} for x, y in zip(inputs, targets, strict=True)]
    found = []
    for watched in (False, True):
        transformers.set_seed(0)
        model = Model()
        callback = TrackerCallback(
            {"x": inputs}, every=2, log=tmp_path / "run.jsonl", outputs=lambda y: y["logits"]
        )
        settings = transformers.TrainingArguments(
            tmp_path / "out", max_steps=6, per_device_train_batch_size=3, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, settings, train_dataset=rows, callbacks=[callback] if watched else []
        )
        trainer.train()
        found.append([p.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert [look.step for look in read_runs(tmp_path / "run.jsonl")[0].looks] == [0, 2, 4, 6]
