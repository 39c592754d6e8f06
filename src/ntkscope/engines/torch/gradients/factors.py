"""Per-sample parameter gradients in factored form: their norms, inner products and rows.

A factor is the gradient of one parameter for k probes and B samples. For a linear map
used at positions t, probe i and sample b it is G_ib = Σ_t δ_ibt a_btᵀ, so that its norm
and inner products need only those of δ and a, and G_ib is formed only where that is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.sides import Features, SampleSide, side_by_side, square_sum, widened

__all__ = ["Direct", "Factor", "Outer", "add_rows", "add_uses", "concat_positions", "stack_features"]


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
        """The cheapest form for inner products with so many rows."""
        ...


@dataclass(frozen=True)
class Outer:
    """G = Σ_t δ_t ⊗ a_t, a parameter of shape (groups · O, I), or its transpose.

    Attributes:
        probe_side: δ, shape (k, B, groups, T, O).
        sample_side: a, the same for every probe.
        transposed: Whether the parameter is laid out as (I, O) instead, for one group.
    """

    probe_side: Tensor
    sample_side: SampleSide
    transposed: bool = False

    @property
    def probes(self) -> int:
        """Number of probes k."""
        return self.probe_side.shape[0]

    @property
    def layout(self) -> tuple[int, int, int, bool]:
        """Groups, outputs, features and order: factors that share it may be summed by positions."""
        _, _, groups, _, outputs = self.probe_side.shape
        return groups, outputs, self.sample_side.width, self.transposed

    @property
    def dtype(self) -> torch.dtype:
        """Of δ."""
        return self.probe_side.dtype

    @property
    def device(self) -> torch.device:
        """Where δ lies."""
        return self.probe_side.device

    @property
    def nbytes(self) -> int:
        """Memory that both sides take."""
        return self.probe_side.nbytes + self.sample_side.nbytes

    def squared_norms(self) -> Tensor:
        """‖G_ib‖², shape (k, B)."""
        _, _, _, positions, outputs = self.probe_side.shape
        width = self.sample_side.width
        if positions == 1:
            gram = self.sample_side.own_gram()[..., 0, 0]
            return (square_sum(self.probe_side, (3, 4)) * gram).sum(2)
        # Multiply-adds: T²(O + 1) by Gram matrices (the features' is shared by all probes), TOI formed.
        if positions * (outputs + 1) <= outputs * width:
            probe_side = widened(self.probe_side)
            gram = probe_side @ probe_side.mT
            return gram.mul_(self.sample_side.own_gram()).sum((2, 3, 4))
        return square_sum(self.sample_side.contract(self.probe_side), (2, 3, 4))

    def rows(self) -> Tensor:
        """The gradients themselves, shape (k, B, P)."""
        formed = self.sample_side.contract(self.probe_side)
        formed = formed.transpose(3, 4) if self.transposed else formed
        return formed.reshape(*formed.shape[:2], -1)

    def summed(self) -> Tensor:
        """The gradients summed over samples, shape (k, P); they are not formed one by one."""
        probe_side = self.probe_side.transpose(1, 2).flatten(2, 3).unsqueeze(1)
        return Outer(probe_side, self.sample_side.joined(), self.transposed).rows()[:, 0]

    def row_size(self) -> int:
        """P: entries of the parameter."""
        return self.probe_side.shape[2] * self.probe_side.shape[4] * self.sample_side.width

    def add_tile(self, other: Factor, total: Tensor) -> None:
        """As :meth:`Factor.add_tile`."""
        if not isinstance(other, Outer):
            Direct(self.rows()).add_tile(other, total)
            return
        (k, batch, groups, positions, outputs), others = self.probe_side.shape, widened(other.probe_side)
        left = widened(self.probe_side).permute(2, 0, 1, 3, 4).reshape(groups, -1, outputs)
        right = others.permute(2, 0, 1, 3, 4).reshape(groups, -1, outputs)
        products = (left @ right.mT).reshape(
            groups, k, batch, positions, others.shape[0], others.shape[1], others.shape[3]
        )
        gram = self.sample_side.gram(other.sample_side).permute(2, 0, 3, 1, 4).to(products.dtype)
        gram = gram[:, None, :, :, None]
        if groups == positions == others.shape[3] == 1:
            total.addcmul_(products[0, :, :, 0, :, :, 0], gram[0, :, :, 0, :, :, 0])
        else:
            total += products.mul_(gram).sum((0, 3, 6))

    def settled(self, rows: int) -> Factor:
        """The cheaper form for inner products with so many rows: this one, or the gradients themselves."""
        _, _, groups, positions, outputs = self.probe_side.shape
        width = self.sample_side.width
        by_gram = rows * groups * positions**2 * (outputs + 1)
        formed = groups * outputs * width * (rows + 2 * positions)
        return self if by_gram <= formed else Direct(self.rows())


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
        left, right = widened(self.values).reshape(-1, size), widened(other.rows()).reshape(-1, size)
        total += (left @ right.mT).reshape(total.shape)

    def settled(self, rows: int) -> Direct:
        """Itself: there is no other form."""
        return self


def add_uses(factors: Sequence[Factor]) -> Factor:
    """The sum of several uses of one parameter: as an outer product where all are, else as rows."""
    outers = [factor for factor in factors if isinstance(factor, Outer)]
    if len(outers) == len(factors) and len({factor.layout for factor in outers}) == 1:
        return concat_positions(outers)
    return add_rows(factors)


def concat_positions(factors: Sequence[Outer]) -> Outer:
    """The sum of several uses of one parameter, as outer products: their positions side by side."""
    if len(factors) == 1:
        return factors[0]
    probe_side = torch.cat([factor.probe_side for factor in factors], dim=3)
    sample_side = side_by_side([factor.sample_side for factor in factors], probe_side.dtype)
    return Outer(probe_side, sample_side, factors[0].transposed)


def add_rows(factors: Sequence[Factor]) -> Direct:
    """The sum of several uses of one parameter of any form."""
    return Direct(torch.stack([factor.rows() for factor in factors]).sum(0))


def stack_features(factors: Sequence[Outer]) -> Outer:
    """Several parameters with the same δ (a weight and its bias) as one: their features side by side."""
    dense = torch.cat([factor.sample_side.dense(factor.dtype) for factor in factors], dim=3)
    return Outer(factors[0].probe_side, Features(dense))
