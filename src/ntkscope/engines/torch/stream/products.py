"""Products of J of data that streams, with every batch in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkscope.engines.torch.state import StateFunction
from ntkscope.engines.torch.stream.source import Stream

__all__ = ["StreamJacobian"]


class StreamJacobian:
    """J of the whole set, as :class:`ntkscope.engines.torch.jacobian.Jacobian` of one batch.

    Args:
        stream: The model and its data.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.shape, self.ledger = stream.shape, stream.ledger

    @property
    def function(self) -> StateFunction:
        """The state of the first batch, for its dtype and device."""
        return self._stream.first.function

    def vjp(self, z: Tensor) -> Tensor:
        """Jᵀz for every row of z, a sum over batches: (k, n) → (k, p)."""
        out = z.new_zeros((z.shape[0], self.shape[1]))
        for engine, places in self._stream.visits():
            out += engine.jacobian.vjp(z[:, places])
        return out

    def vjp_squared_norms(self, z: Tensor) -> Tensor:
        """‖Jᵀz‖² for every row of z, in float64: (k, n) → (k,)."""
        product = self.vjp(z).double()
        return (product * product).sum(1)

    def jvp(self, u: Tensor) -> Tensor:
        """Ju for every row of u: (k, p) → (k, n)."""
        out = torch.empty((u.shape[0], self.shape[0]), dtype=self.function.dtype, device=u.device)
        for engine, places in self._stream.visits():
            out[:, places] = engine.jacobian.jvp(u)
        return out

    def ntk(self, z: Tensor) -> Tensor:
        """Kz = J(Jᵀz) for every row of z, by two passes over the data: (k, n) → (k, n)."""
        return self.jvp(self.vjp(z))
