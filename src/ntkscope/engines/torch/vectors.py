"""Vectors on a state: from numbers of the host, and as gradients of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.engines.torch.losses import gradient_of_loss

__all__ = ["StateVectors"]


class _HasState(Protocol):
    @property
    def state(self) -> Tensor: ...

    @property
    def output_shape(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


class StateVectors:
    """What engines whose state is at hand offer of vectors on it."""

    def as_state(self: _HasState, values: NDArray[np.float64]) -> Tensor:
        """As :meth:`ntkscope.engines.base.Engine.as_state`."""
        return torch.from_numpy(values).to(self.device, self.dtype).reshape(self.output_shape)

    def state_gradient(self: _HasState, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """As :meth:`ntkscope.engines.base.Engine.state_gradient`."""
        return gradient_of_loss(loss, self.state)
