"""A callback for Lightning: ``Trainer(callbacks=[TrackerCallback(inputs, log="run.jsonl")])``.

Importing this module needs Lightning, nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback

from ntkscope.tracking.hook import Hook
from ntkscope.tracking.tracker import Tracker

__all__ = ["TrackerCallback"]


class TrackerCallback(Callback):  # type: ignore[misc]
    """Watches the kernel of a LightningModule while it trains; a look after every so many optimiser steps.

    With several processes the first one watches. A run resumed by ``ckpt_path`` continues its log.

    Args:
        inputs: A fixed batch that the module's ``forward`` is called with.
        **options: As of :class:`ntkscope.Tracker`: ``every``, ``targets``, ``log``, ``outputs`` and so on.
    """

    def __init__(self, inputs: Any, **options: Any) -> None:
        super().__init__()
        self._hook = Hook(inputs, options)

    @property
    def tracker(self) -> Tracker | None:
        """The tracker, once training has begun; ``tracker.update()`` looks from any hook."""
        return self._hook.tracker

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Takes the first look."""
        if trainer.is_global_zero:
            self._hook.begin(pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks if it is time; batches that are only accumulated are no steps."""
        values = {"loss": outputs["loss"]} if isinstance(outputs, Mapping) and "loss" in outputs else {}
        self._hook.after(trainer.global_step, **values)
