"""What the callbacks of training frameworks share: a tracker that is made when training begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ntkscope.data import as_inputs
from ntkscope.tracking.sinks import split_logs
from ntkscope.tracking.tracker import Tracker

__all__ = ["Hook"]


class Hook:
    """A tracker for a framework's loop, which counts the steps itself.

    Args:
        inputs: As of :class:`ntkscope.Tracker`; moved to where the model is.
        options: The tracker's other arguments.

    Attributes:
        tracker: Once training has begun; ``None`` before.
    """

    def __init__(self, inputs: Any, options: Mapping[str, Any]) -> None:
        self.tracker: Tracker | None = None
        self._inputs = inputs
        self._options = dict(options)
        self._offset = 0

    def begin(self, model: nn.Module, step: int) -> None:
        """Makes the tracker as training begins, or goes on after some steps.

        A run that goes on continues its log; without one, steps are counted from here.
        """
        path, _ = split_logs(self._options.get("log"))
        goes_on = step > 0 and path is not None and path.exists() and path.stat().st_size > 0
        self._offset = 0 if goes_on else step
        device = next(model.parameters()).device
        inputs = _moved(as_inputs(self._inputs), device)
        self.tracker = Tracker(model, inputs, resume=step if goes_on else None, **self._options)
        self.tracker.counting = True

    def after(self, step: int, **values: Any) -> None:
        """Tells the tracker how many optimiser steps there have been, if there are new ones."""
        taken = step - self._offset
        if self.tracker is not None and taken > self.tracker.steps:
            self.tracker.steps = taken - 1
            self.tracker.step(**values)


def _moved(inputs: Any, device: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        parts = [_moved(value, device) for value in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    return inputs
