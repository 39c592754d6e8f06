"""A callback for Hugging Face's Trainer: ``Trainer(..., callbacks=[TrackerCallback(inputs)])``.

Importing this module needs transformers, nothing else does.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ntkscope.tracking.hook import Hook
from ntkscope.tracking.tracker import Tracker

__all__ = ["TrackerCallback"]


class TrackerCallback(TrainerCallback):  # type: ignore[misc]
    """Watches the kernel of a model while a Trainer trains it; a look after every so many optimiser steps.

    With several processes the first one watches. A run resumed from a checkpoint continues its log.

    Args:
        inputs: A fixed batch that the model is called with, such as a tokenizer's.
        **options: As of :class:`ntkscope.Tracker`; ``outputs=lambda y: y.logits`` picks the logits.
    """

    def __init__(self, inputs: Any, **options: Any) -> None:
        self._hook = Hook(inputs, options)

    @property
    def tracker(self) -> Tracker | None:
        """The tracker, once training has begun."""
        return self._hook.tracker

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Takes the first look."""
        if state.is_world_process_zero:
            self._hook.begin(model, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Looks if it is time."""
        self._hook.after(state.global_step)
