"""What a factor of per-sample parameter gradients offers, and the plainest one: the gradients themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.sides import in_one_dtype, in_range, square_sum, widened

__all__ = ["Direct", "Factor"]


class Factor(Protocol):
    """The gradients G_ib of one parameter with P entries, for k probes i and B samples b."""

    @property
    def probes(self) -> int:
        """Number of probes k."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the gradients."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the gradients lie."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that the factor takes."""
        ...

    def squared_norms(self) -> Tensor:
        """‖G_ib‖², shape (k, B)."""
        ...

    def rows(self) -> Tensor:
        """The gradients themselves, shape (k, B, P)."""
        ...

    def summed(self) -> Tensor:
        """The gradients summed over samples, shape (k, P)."""
        ...

    def row_size(self) -> int:
        """P: entries of the parameter."""
        ...

    def add_tile(self, other: Factor, total: Tensor) -> None:
        """Adds ⟨G_ib, G′_jc⟩ to ``total``, shape (k, B, k′, B′); ``other`` is of the same parameter."""
        ...

    def settled(self, rows: int) -> Factor:
        """The cheapest form for inner products with so many rows that does not lose them to rounding."""
        ...


@dataclass(frozen=True)
class Direct:
    """The gradients themselves.

    Attributes:
        values: Shape (k, B, P).

    Raises:
        ValueError: If they have another number of axes.
    """

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 3:
            raise ValueError(
                f"gradients have shape (probes, samples, entries), found {tuple(self.values.shape)}; "
                "flatten the parameter's own axes, as with .flatten(2)"
            )

    @property
    def probes(self) -> int:
        """Number of probes k."""
        return self.values.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the gradients."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the gradients lie."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Memory that the gradients take."""
        return self.values.nbytes

    def squared_norms(self) -> Tensor:
        """‖G_ib‖², shape (k, B)."""
        return square_sum(self.values, (2,))

    def rows(self) -> Tensor:
        """The gradients, shape (k, B, P)."""
        return self.values

    def summed(self) -> Tensor:
        """The gradients summed over samples, shape (k, P)."""
        return self.values.sum(1)

    def row_size(self) -> int:
        """P: entries of the parameter."""
        return self.values.shape[2]

    def add_tile(self, other: Factor, total: Tensor) -> None:
        """As :meth:`Factor.add_tile`."""
        size = self.values.shape[2]
        left, right = in_one_dtype(widened(self.values), widened(other.rows()))
        total += (left.reshape(-1, size) @ right.reshape(-1, size).mT).reshape(total.shape)

    def settled(self, rows: int) -> Direct:
        """Itself; in float64 where squares would leave the range of float32."""
        # Only the largest entry is looked for: squares of all of them would take as much memory again.
        smallest, largest = (float(x) for x in torch.aminmax(widened(self.values)))
        largest = max(-smallest, largest)
        if self.dtype == torch.float64 or largest == 0 or in_range(torch.tensor(largest) ** 2):
            return self
        return Direct(self.values.double())
