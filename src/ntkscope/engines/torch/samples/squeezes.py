"""``squeeze()`` without an axis, which of a batch of one drops the samples' axis too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import TorchFunctionMode

__all__ = ["Squeezes"]

_SQUEEZES = {torch.squeeze, Tensor.squeeze, Tensor.squeeze_}


class Squeezes(TorchFunctionMode):
    """Sees each ``squeeze()`` without an axis, and lets it drop the axes that it drops of a batch.

    Args:
        of_a_batch: For each of them in turn the shape's length and the axes; where there is none, or the
            number of axes is another, it drops what it would.

    Attributes:
        found: The same of those that ran.
    """

    def __init__(self, of_a_batch: Sequence[tuple[int, tuple[int, ...]]] = ()) -> None:
        super().__init__()
        self._of_a_batch = of_a_batch
        self.found: list[tuple[int, tuple[int, ...]]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func not in _SQUEEZES or len(args) + len(kwargs or {}) != 1:
            return func(*args, **(kwargs or {}))
        value: Tensor = args[0] if args else next(iter((kwargs or {}).values()))
        axes = tuple(axis for axis, size in enumerate(value.shape) if size == 1)
        number = len(self.found)
        self.found.append((value.dim(), axes))
        if number < len(self._of_a_batch):
            dims, wanted = self._of_a_batch[number]
            if dims == value.dim() and set(wanted) <= set(axes):
                axes = wanted
        return func(value, axes)
