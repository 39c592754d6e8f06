"""Gradients of linear maps as outer products, whose norms and inner products need no gradient formed.

By Gram matrices ‖G‖² = Σ_tu (δ_t·δ_u)(a_t·a_u). Where the terms of this sum cancel (features far from
zero whose mean is taken off later) it loses its digits, and is taken in another way.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.base import Direct, Factor
from ntkscope.engines.torch.gradients.sides import SampleSide, in_range, square_sum, widened

__all__ = ["Order", "Outer", "is_lost"]

# What Gram matrices may lose by cancellation, relative to a gradient's own squared norm.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Order:
    """How a parameter lies in memory whose axes are not (groups, O, I) in this order.

    Attributes:
        sizes: Its axes in the order groups, outputs, features; there may be several of each.
        axes: The places of the parameter's axes among these.
    """

    sizes: tuple[int, ...]
    axes: tuple[int, ...]

    def of(self, formed: Tensor) -> Tensor:
        """From (k, B, groups, O, I) to (k, B, *axes of the parameter)."""
        split = formed.reshape(*formed.shape[:2], *self.sizes)
        return split.permute(0, 1, *(axis + 2 for axis in self.axes))


@dataclass(frozen=True)
class Outer:
    """G = Σ_t δ_t ⊗ a_t, a parameter of shape (groups · O, I), or one with its axes in another order.

    Attributes:
        probe_side: δ, shape (k, B, groups, T, O).
        sample_side: a, the same for every probe.
        transposed: Whether the parameter is laid out as (groups, I, O) instead.
        order: Any other order.
    """

    probe_side: Tensor
    sample_side: SampleSide
    transposed: bool = False
    order: Order | None = None

    @property
    def probes(self) -> int:
        """Number of probes k."""
        return self.probe_side.shape[0]

    @property
    def layout(self) -> tuple[int, int, int, bool, Order | None]:
        """Groups, outputs, features and order: factors that share it may be summed by positions."""
        _, _, groups, _, outputs = self.probe_side.shape
        return groups, outputs, self.sample_side.width, self.transposed, self.order

    @property
    def dtype(self) -> torch.dtype:
        """The wider of the two sides' (of which one may be that of a region in low precision)."""
        return torch.promote_types(self.probe_side.dtype, self.sample_side.dtype)

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
        # Multiply-adds: T²(O + 1) by Gram matrices (the features' is shared by all probes), TOI formed.
        if positions > 1 and positions * (outputs + 1) > outputs * self.sample_side.work:
            compact = replace(self, sample_side=self.sample_side.compact())
            return square_sum(compact._formed(), (2, 3, 4))
        squares, terms = self._squares_by_gram()
        if self.dtype != torch.float64 and not in_range(terms) and bool(self.probe_side.any()):
            return self._in(torch.float64)._squares_by_gram()[0]
        if positions == 1:
            return squares
        lost = is_lost(squares, terms)
        return self._squares_again(squares, lost) if bool(lost.any()) else squares

    def _in(self, dtype: torch.dtype) -> Outer:
        """Both sides in one dtype."""
        if dtype == self.probe_side.dtype == self.sample_side.dtype:
            return self
        return replace(self, probe_side=self.probe_side.to(dtype), sample_side=self.sample_side.to(dtype))

    def _formed(self) -> Tensor:
        """The gradients, shape (k, B, groups, O, features)."""
        # Sums of float16 soon leave its range.
        wide = self._in(torch.float32 if self.dtype == torch.float16 else self.dtype)
        return wide.sample_side.contract(wide.probe_side)

    def _squares_by_gram(self) -> tuple[Tensor, Tensor]:
        """‖G_ib‖² = Σ_tu (δ_t·δ_u)(a_t·a_u), and how large its terms are: Σ_t ‖δ_t‖²‖a_t‖², both (k, B)."""
        wide = self._in(self.dtype)
        probe_side = widened(wide.probe_side)
        if probe_side.shape[3] == 1:
            # Of one position: ‖δ‖²‖a‖², without a product of matrices for each.
            lengths = torch.linalg.vector_norm(probe_side, dim=4, keepdim=True)
            squares = lengths.square_().mul_(wide.sample_side.own_gram())
            squares = squares[:, :, 0, 0, 0] if squares.shape[2] == 1 else squares.sum((2, 3, 4))
            return squares, squares
        products = (probe_side @ probe_side.mT).mul_(wide.sample_side.own_gram())
        return products.sum((2, 3, 4)), products.diagonal(dim1=3, dim2=4).sum((2, 3))

    def _squares_again(self, squares: Tensor, lost: Tensor) -> Tensor:
        """Those that were lost anew: by Gram matrices in float64, or by the gradients where these were."""
        squares = squares.double()
        probes, samples = lost.nonzero(as_tuple=True)
        # At once as much as one probe takes.
        for i, b in zip(probes.split(lost.shape[1]), samples.split(lost.shape[1]), strict=True):
            some = replace(
                self, probe_side=self.probe_side[i, b].unsqueeze(0), sample_side=self.sample_side.picked(b)
            )
            if self.dtype == torch.float64:
                squares[i, b] = square_sum(some._formed(), (2, 3, 4))[0]
            else:
                squares[i, b] = some._in(torch.float64)._squares_by_gram()[0][0]
        return squares

    def rows(self) -> Tensor:
        """The gradients themselves, shape (k, B, P)."""
        formed = self._formed()
        formed = formed.transpose(3, 4) if self.transposed else formed
        formed = formed if self.order is None else self.order.of(formed)
        return formed.reshape(*formed.shape[:2], -1)

    def summed(self) -> Tensor:
        """The gradients summed over samples, shape (k, P); they are not formed one by one."""
        probe_side = self.probe_side.transpose(1, 2).flatten(2, 3).unsqueeze(1)
        return replace(self, probe_side=probe_side, sample_side=self.sample_side.joined()).rows()[:, 0]

    def row_size(self) -> int:
        """P: entries of the parameter."""
        return self.probe_side.shape[2] * self.probe_side.shape[4] * self.sample_side.width

    def add_tile(self, other: Factor, total: Tensor) -> None:
        """As :meth:`Factor.add_tile`."""
        if not isinstance(other, Outer):
            Direct(self.rows()).add_tile(other, total)
            return
        k, batch, groups, positions, outputs = self.probe_side.shape
        dtype = functools.reduce(torch.promote_types, (self.dtype, other.dtype, torch.float32))
        own, others = self.probe_side.to(dtype), other.probe_side.to(dtype)
        left = own.permute(2, 0, 1, 3, 4).reshape(groups, -1, outputs)
        right = others.permute(2, 0, 1, 3, 4).reshape(groups, -1, outputs)
        products = (left @ right.mT).reshape(
            groups, k, batch, positions, others.shape[0], others.shape[1], others.shape[3]
        )
        features = self.sample_side.to(dtype)
        gram = features.gram(other.sample_side.to(dtype)).permute(2, 0, 3, 1, 4).to(dtype)
        gram = gram[:, None, :, :, None]
        if groups == positions == others.shape[3] == 1:
            total.addcmul_(products[0, :, :, 0, :, :, 0], gram[0, :, :, 0, :, :, 0])
        else:
            total += products.mul_(gram).sum((0, 3, 6))

    def settled(self, rows: int) -> Factor:
        """The form for inner products with so many rows: this one, or the gradients themselves.

        They are formed where that is cheaper. Where terms of this form cancel, it is kept in float64;
        what cancels there is formed.
        """
        _, _, groups, positions, outputs = self.probe_side.shape
        width = self.sample_side.width
        by_gram = rows * groups * positions**2 * (outputs + 1)
        formed = groups * outputs * width * (rows + 2 * positions)
        if by_gram > formed:
            return Direct(self.rows()).settled(rows)
        if positions == 1 and self.dtype == torch.float64:
            return self
        squares, terms = self._squares_by_gram()
        if in_range(terms) and not (positions > 1 and bool(is_lost(squares, terms).any())):
            return self
        if self.dtype == torch.float64:
            return Direct(self.rows())
        return self._in(torch.float64) if bool(self.probe_side.any()) else self


def is_lost(squares: Tensor, terms: Tensor) -> Tensor:
    """Where Σ_tu (δ_t·δ_u)(a_t·a_u) cancels, so that the rounding of its terms shows in it.

    Each product is off by rounding of ‖δ_t‖‖δ_u‖‖a_t‖‖a_u‖. These errors are as good as independent, so
    that the sum is off by ε √Σ_tu(...)² = ε Σ_t ‖δ_t‖²‖a_t‖², times a small number.
    """
    dtype = squares.dtype
    return ~(terms * (4 * torch.finfo(dtype).eps / _TOLERANCE[dtype]) <= squares)
