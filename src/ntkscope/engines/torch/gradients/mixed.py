"""Outer products of one matrix from both sides, as of a table of words that is a model's head too.

A = Σ_t p_t ⊗ s_t and B = Σ_u r_u ⊗ q_u have ⟨A, B⟩ = Σ_tu (p_t·r_u)(s_t·q_u), so that the norm of their
sum needs no gradient formed, which would be as large as the table for every sample and probe.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.base import Direct, Factor
from ntkscope.engines.torch.gradients.outer import Outer, is_lost
from ntkscope.engines.torch.gradients.sides import Lookup, SampleSide, square_sum, widened

__all__ = ["Mixed"]


@dataclass(frozen=True)
class Mixed:
    """The sum of two outer products, one laid out as (O, I) and the other as (I, O) transposed; one group.

    Attributes:
        straight: A, whose δ is on the side of the parameter's first axis.
        transposed: B, whose δ is on that of its second axis.
    """

    straight: Outer
    transposed: Outer

    @classmethod
    def of(cls, straight: Outer, transposed: Outer) -> Mixed | None:
        """The sum; ``None`` where they are not gradients of one matrix from both sides."""
        ours, theirs = straight.layout, transposed.layout
        is_matrix = ours[0] == theirs[0] == 1 and ours[4] is None and theirs[4] is None
        if is_matrix and (ours[3], theirs[3]) == (False, True) and ours[1:3] == (theirs[2], theirs[1]):
            return cls(straight, transposed)
        return None

    @property
    def probes(self) -> int:
        """Number of probes k."""
        return self.straight.probes

    @property
    def dtype(self) -> torch.dtype:
        """The wider of both."""
        return torch.promote_types(self.straight.dtype, self.transposed.dtype)

    @property
    def device(self) -> torch.device:
        """Where δ lies."""
        return self.straight.device

    @property
    def nbytes(self) -> int:
        """Memory that both take."""
        return self.straight.nbytes + self.transposed.nbytes

    def squared_norms(self) -> Tensor:
        """‖G_ib‖² = ‖A‖² + ‖B‖² + 2⟨A, B⟩, shape (k, B)."""
        own, other = self.straight.squared_norms(), self.transposed.squared_norms()
        alone = own + other
        total = alone + 2 * self._inner().to(alone.dtype)
        if not bool(is_lost(total, alone).any()):
            return total
        if self.dtype == torch.float64:
            return square_sum(self.rows(), (2,))
        double = [
            replace(one, probe_side=one.probe_side.double(), sample_side=one.sample_side.to(torch.float64))
            for one in (self.straight, self.transposed)
        ]
        return Mixed(*double).squared_norms()

    def _inner(self) -> Tensor:
        """⟨A_ib, B_ib⟩, shape (k, B)."""
        p, q = (widened(one.probe_side[:, :, 0]) for one in (self.straight, self.transposed))
        met = _against(self.transposed.sample_side, p), _against(self.straight.sample_side, q)
        return (met[0] * met[1].mT).sum((2, 3))

    def rows(self) -> Tensor:
        """The gradients themselves, shape (k, B, P)."""
        return self.straight.rows() + self.transposed.rows()

    def summed(self) -> Tensor:
        """The gradients summed over samples, shape (k, P); they are not formed one by one."""
        return self.straight.summed() + self.transposed.summed()

    def row_size(self) -> int:
        """P: entries of the parameter."""
        return self.straight.row_size()

    def add_tile(self, other: Factor, total: Tensor) -> None:
        """As :meth:`Factor.add_tile`."""
        Direct(self.rows()).add_tile(other, total)

    def settled(self, rows: int) -> Direct:
        """The gradients."""
        return Direct(self.rows()).settled(rows)


def _against(side: SampleSide, vectors: Tensor) -> Tensor:
    """Inner products of (k, B, N, F) with a sample's features, shape (k, B, N, T)."""
    if isinstance(side, Lookup):
        index = side.index[None, :, None, :].expand(len(vectors), -1, vectors.shape[2], -1)
        return vectors.gather(3, index)
    dtype = functools.reduce(torch.promote_types, (side.dtype, vectors.dtype))
    return vectors.to(dtype) @ side.dense(dtype)[:, 0].to(dtype).mT
