"""The targets as a vector of the state, and how strongly the kernel pulls along it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ntkscope.engines.base import layer_of
from ntkscope.ntk import NTK
from ntkscope.ways.targets import read_targets

__all__ = ["Targets"]


@dataclass(frozen=True)
class Targets:
    """The targets y, flattened as the state is.

    Attributes:
        vector: Shape (n,).
        square: ‖y‖².
        classes: The classes that it was given as, if it was.
    """

    vector: Tensor
    square: float
    classes: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, y: Any, kernel: NTK) -> Targets:
        """Targets of a kernel's state.

        Args:
            y: Numbers of the state's shape, or classes, whole numbers of the state's shape without its
                last axis, which become one-hot.
            kernel: Whose state it is.

        Raises:
            TypeError: If it holds no numbers.
            ValueError: If it fits neither, holds a class that there is not, or is zero or not finite.
        """
        vector, classes = read_targets(y, tuple(kernel.output_shape))
        square = float(vector @ vector)
        if not 0 < square < float("inf"):
            raise ValueError(f"targets have ‖y‖² = {square}, expected a positive number; check their values")
        return cls(torch.from_numpy(vector).to(kernel.device, kernel.dtype), square, classes)

    def pull(self, kernel: NTK, model: nn.Module) -> Mapping[str, float]:
        """‖Jᵀy‖² / ‖y‖² = yᵀKy / ‖y‖², of all parameters under ``""`` and by layer; one VJP."""
        gradient = kernel.vjp(self.vector).double()
        found = {"": float(gradient @ gradient) / self.square}
        start = 0
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            size = parameter.numel() * (2 if parameter.is_complex() else 1)
            part = gradient[start : start + size]
            layer = layer_of(name)
            found[layer] = found.get(layer, 0.0) + float(part @ part) / self.square
            start += size
        return found
