"""Per-sample parameter gradients in factored form: their norms, inner products and rows.

A factor is the gradient of one parameter for k probes and B samples. For a linear map
used at positions t, probe i and sample b it is G_ib = Σ_t δ_ibt a_btᵀ, so that its norm
and inner products need only those of δ and a, and G_ib is formed only where that is cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Direct",
    "Factor",
    "Features",
    "Lookup",
    "Outer",
    "add_rows",
    "concat_positions",
    "square_sum",
    "stack_features",
    "widened",
]


class SampleSide(Protocol):
    """The side of an outer product that does not depend on the probe: (B, groups, T, features)."""

    @property
    def positions(self) -> int:
        """Number of positions T."""
        ...

    @property
    def width(self) -> int:
        """Number of features."""
        ...

    def gram(self, other: SampleSide) -> Tensor:
        """Inner products between the positions of all pairs of samples: (B, B′, groups, T, T′)."""
        ...

    def own_gram(self) -> Tensor:
        """Inner products between the positions of each sample: (B, groups, T, T)."""
        ...

    def contract(self, probe_side: Tensor) -> Tensor:
        """Σ_t δ_t ⊗ a_t: (k, B, groups, T, O) → (k, B, groups, O, features)."""
        ...

    def joined(self) -> SampleSide:
        """All samples as one, their positions side by side: B = 1, B · T positions."""
        ...


@dataclass(frozen=True)
class Features:
    """Dense features a, shape (B, groups, T, I)."""

    values: Tensor

    @property
    def positions(self) -> int:
        """Number of positions T."""
        return self.values.shape[2]

    @property
    def width(self) -> int:
        """Number of features."""
        return self.values.shape[3]

    def gram(self, other: SampleSide) -> Tensor:
        """As :meth:`SampleSide.gram`."""
        values = widened(self.values)
        return torch.einsum("bgti,cgui->bcgtu", values, widened(_dense(other, self.width, values.dtype)))

    def own_gram(self) -> Tensor:
        """As :meth:`SampleSide.own_gram`."""
        values = widened(self.values)
        return values @ values.mT

    def contract(self, probe_side: Tensor) -> Tensor:
        """As :meth:`SampleSide.contract`."""
        k, batch, groups, positions, outputs = probe_side.shape
        if self.width < outputs:
            # The features are the smaller side: they are repeated for the probes, not δ rearranged.
            features = self.values.mT.expand(k, batch, groups, self.width, positions).flatten(0, 2)
            product = features @ probe_side.flatten(0, 2)
            return product.unflatten(0, (k, batch, groups)).mT
        # The probes join the rows of one product a sample: (B, g, k·O, T) @ (B, g, T, I).
        rows = probe_side.permute(1, 2, 0, 4, 3).reshape(batch, groups, k * outputs, positions)
        product = rows @ self.values
        return product.reshape(batch, groups, k, outputs, self.width).permute(2, 0, 1, 3, 4)

    def joined(self) -> Features:
        """As :meth:`SampleSide.joined`."""
        return Features(self.values.transpose(0, 1).flatten(1, 2).unsqueeze(0))


@dataclass(frozen=True)
class Lookup:
    """One-hot features given by their indices, shape (B, T), among ``size``: an embedding's input."""

    index: Tensor
    size: int

    @property
    def positions(self) -> int:
        """Number of positions T."""
        return self.index.shape[1]

    @property
    def width(self) -> int:
        """Number of features."""
        return self.size

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The one-hot vectors themselves, shape (B, 1, T, size)."""
        return torch.nn.functional.one_hot(self.index, self.size).to(dtype).unsqueeze(1)

    def gram(self, other: SampleSide) -> Tensor:
        """As :meth:`SampleSide.gram`."""
        if isinstance(other, Lookup):
            equal = self.index[:, None, :, None] == other.index[None, :, None, :]
            return equal.unsqueeze(2)
        values = _dense(other, self.width, torch.float64)
        return Features(self.dense(values.dtype)).gram(Features(values))

    def own_gram(self) -> Tensor:
        """As :meth:`SampleSide.own_gram`."""
        return (self.index[:, :, None] == self.index[:, None, :]).unsqueeze(1)

    def contract(self, probe_side: Tensor) -> Tensor:
        """As :meth:`SampleSide.contract`."""
        k, batch, groups, _, outputs = probe_side.shape
        out = probe_side.new_zeros(k, batch, groups, self.size, outputs)
        index = self.index[None, :, None, :, None].expand_as(probe_side)
        return out.scatter_add_(3, index, probe_side).transpose(3, 4)

    def joined(self) -> Lookup:
        """As :meth:`SampleSide.joined`."""
        return Lookup(self.index.reshape(1, -1), self.size)


def _dense(side: SampleSide, width: int, dtype: torch.dtype) -> Tensor:
    if isinstance(side, Lookup):
        return side.dense(dtype)
    assert isinstance(side, Features)
    assert side.width == width
    return side.values


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

    def add_tile(self, other: Outer, total: Tensor) -> None:
        """Adds ⟨G_ib, G′_jc⟩ to ``total``, shape (k, B, k′, B′)."""
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
    """

    values: Tensor

    @property
    def probes(self) -> int:
        """Number of probes k."""
        return self.values.shape[0]

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

    def add_tile(self, other: Direct, total: Tensor) -> None:
        """Adds ⟨G_ib, G′_jc⟩ to ``total``, shape (k, B, k′, B′)."""
        size = self.values.shape[2]
        left, right = widened(self.values).reshape(-1, size), widened(other.values).reshape(-1, size)
        total += (left @ right.mT).reshape(total.shape)

    def settled(self, rows: int) -> Direct:
        """Itself: there is no other form."""
        return self


Factor: TypeAlias = Outer | Direct


def concat_positions(factors: list[Outer]) -> Outer:
    """The sum of several uses of one parameter: their positions side by side."""
    if len(factors) == 1:
        return factors[0]
    first = factors[0]
    probe_side = torch.cat([factor.probe_side for factor in factors], dim=3)
    sides = [factor.sample_side for factor in factors]
    if all(isinstance(side, Lookup) for side in sides):
        index = torch.cat([side.index for side in sides if isinstance(side, Lookup)], dim=1)
        return Outer(probe_side, Lookup(index, first.sample_side.width), first.transposed)
    width, dtype = first.sample_side.width, probe_side.dtype
    dense = torch.cat([_dense(side, width, dtype) for side in sides], dim=2)
    return Outer(probe_side, Features(dense), first.transposed)


def stack_features(factors: list[Outer]) -> Outer:
    """Several parameters with the same δ (a weight and its bias) as one: their features side by side."""
    dense = torch.cat(
        [_dense(f.sample_side, f.sample_side.width, f.probe_side.dtype) for f in factors], dim=3
    )
    return Outer(factors[0].probe_side, Features(dense))


def add_rows(factors: list[Factor]) -> Direct:
    """The sum of several uses of one parameter of any form."""
    return Direct(torch.stack([factor.rows() for factor in factors]).sum(0))


def square_sum(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Σx² over ``dims``, or over all of them."""
    # Pairwise summation keeps float32 right to about 1e-7.
    x = widened(x)
    return (x * x).sum(dims)


def widened(x: Tensor) -> Tensor:
    """Half precision as float32: sums of products soon leave its range and precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
