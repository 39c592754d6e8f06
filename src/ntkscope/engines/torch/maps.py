"""A model's J, Jᵀ and K = JJᵀ as the linear maps that estimators take: where the two halves meet."""

from __future__ import annotations

import array_api_compat.torch as array_api_torch
import numpy as np
import torch
from torch import Tensor

from ntkscope.engines.torch import Jacobian
from ntkscope.operators.probes import random_signs
from ntkscope.operators.space import ArrayBlocks
from ntkscope.results import Cost

__all__ = ["ForwardMap", "KernelMap", "ReverseMap"]


class _JacobianMap(ArrayBlocks):
    """What the three maps share: torch blocks of columns, and counted products."""

    def __init__(self, jacobian: Jacobian, shape: tuple[int, int]) -> None:
        super().__init__(array_api_torch, jacobian.function.dtype, jacobian.function.device)
        self.jacobian = jacobian
        self.shape = shape
        self._products = 0

    @property
    def cost(self) -> Cost:
        """Products of this map, and all that its Jacobian has run."""
        return Cost(products=self._products, vjps=self.jacobian.vjps, jvps=self.jacobian.jvps)

    def signs(self, start: int, stop: int, *, seed: int, stream: int) -> Tensor:
        """Random signs, shape (columns, stop - start)."""
        # Drawn and kept as rows: the transpose is free, and products take rows.
        signs = random_signs(self.shape[1], start, stop, seed=seed, stream=stream)
        return self._rows(signs.T).T

    def identity(self, start: int, stop: int) -> Tensor:
        """Columns of the identity, shape (columns, stop - start)."""
        block = torch.zeros(stop - start, self.shape[1], dtype=self._dtype, device=self._device)
        block[torch.arange(stop - start), torch.arange(start, stop)] = 1
        return block.T

    def _rows(self, signs: np.ndarray) -> Tensor:
        return torch.from_numpy(signs).to(device=self._device, dtype=self._dtype)


class KernelMap(_JacobianMap):
    """K = JJᵀ: (n, k) → (n, k)."""

    def __init__(self, jacobian: Jacobian) -> None:
        super().__init__(jacobian, (jacobian.shape[0], jacobian.shape[0]))

    def apply(self, block: Tensor) -> Tensor:
        """K @ block."""
        self._products += block.shape[1]
        return self.jacobian.ntk(block.T).T


class ReverseMap(_JacobianMap):
    """Jᵀ: (n, k) → (p, k)."""

    def __init__(self, jacobian: Jacobian) -> None:
        super().__init__(jacobian, (jacobian.shape[1], jacobian.shape[0]))

    def apply(self, block: Tensor) -> Tensor:
        """Jᵀ @ block."""
        return self.jacobian.vjp(block.T).T


class ForwardMap(_JacobianMap):
    """J: (p, k) → (n, k)."""

    def __init__(self, jacobian: Jacobian) -> None:
        super().__init__(jacobian, (jacobian.shape[0], jacobian.shape[1]))

    def apply(self, block: Tensor) -> Tensor:
        """J @ block."""
        return self.jacobian.jvp(block.T).T
