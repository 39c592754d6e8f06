"""Outer products times a matrix that all samples share, entry by entry: gradients of derived weights.

A mask m before a weight makes m ∘ (δ ⊗ a) of its gradient. Its norm is that of a matrix product, with no
gradient formed: ‖m ∘ (δ ⊗ a)‖² = Σ_ij δ_i² m_ij² a_j².
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.base import Direct, Factor
from ntkscope.engines.torch.gradients.sides import in_range, square_sum

__all__ = ["MOST_POSITIONS", "Term", "Weighted"]

#: With more positions the gradients are formed, which is cheaper than all pairs of positions.
MOST_POSITIONS = 4

# What may be lost by cancellation between terms, relative to the squared norm.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Term:
    """Σ_t S ∘ (r_t ⊗ c_t) for k probes and B samples; an axis of length 1 is the same for all.

    Attributes:
        rows: r, shape (k or 1, B or 1, T, M).
        columns: c, shape (k or 1, B or 1, T, N).
        weights: S, shape (M, N); ``None`` for ones.
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor | None = None

    @property
    def positions(self) -> int:
        """Number of positions T."""
        return self.rows.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Of the widest part."""
        parts = [x.dtype for x in (self.rows, self.columns, self.weights) if x is not None]
        return functools.reduce(torch.promote_types, parts)

    def times(self, weights: Tensor) -> Term:
        """Times another matrix, entry by entry."""
        return replace(self, weights=weights if self.weights is None else self.weights * weights)

    def turned(self) -> Term:
        """The transpose."""
        return Term(self.columns, self.rows, None if self.weights is None else self.weights.mT)

    def formed(self) -> Tensor:
        """Shape (k, B, M, N)."""
        dtype = self.dtype
        product = self.rows.to(dtype).mT @ self.columns.to(dtype)
        return product if self.weights is None else product * self.weights

    def to(self, dtype: torch.dtype) -> Term:
        """All parts in one dtype."""
        weights = None if self.weights is None else self.weights.to(dtype)
        return Term(self.rows.to(dtype), self.columns.to(dtype), weights)

    def at(self, position: int) -> Term:
        """One position, with no axis for it."""
        return replace(self, rows=self.rows[:, :, position], columns=self.columns[:, :, position])


@dataclass(frozen=True)
class Weighted:
    """A sum of terms, gradients of a parameter whose entries are those of an M × N matrix.

    Attributes:
        terms: With few positions together.
        probes: k.
        batch: B.
    """

    terms: tuple[Term, ...]
    probes: int
    batch: int

    @classmethod
    def of(cls, terms: Sequence[Term], probes: int, batch: int) -> Factor:
        """The sum, formed where that is cheaper."""
        found = cls(tuple(terms), probes, batch)
        positions = sum(term.positions for term in terms)
        return found if positions <= MOST_POSITIONS else Direct(found.rows())

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N)."""
        first = self.terms[0]
        return first.rows.shape[3], first.columns.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        """Of the widest term."""
        return functools.reduce(torch.promote_types, (term.dtype for term in self.terms))

    @property
    def device(self) -> torch.device:
        """Where the terms lie."""
        return self.terms[0].rows.device

    @property
    def nbytes(self) -> int:
        """Memory that both sides take."""
        return sum(term.rows.nbytes + term.columns.nbytes for term in self.terms)

    def squared_norms(self) -> Tensor:
        """‖G_ib‖², shape (k, B)."""
        squares, terms = self._squares()
        if self.dtype == torch.float64:
            lost = _is_lost(squares, terms)
        elif in_range(terms):
            lost = _is_lost(squares, terms) if len(self._positions()) > 1 else torch.zeros_like(squares) > 0
        else:
            return self._in(torch.float64).squared_norms()
        return self._squares_again(squares, lost) if bool(lost.any()) else squares

    def _positions(self) -> list[Term]:
        return [term.at(t) for term in self.terms for t in range(term.positions)]

    def _in(self, dtype: torch.dtype) -> Weighted:
        return replace(self, terms=tuple(term.to(dtype) for term in self.terms))

    def _squares(self) -> tuple[Tensor, Tensor]:
        """Norms by pairs of positions, and the sum of the squares of the positions alone, both (k, B)."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        parts = self._in(dtype)._positions()
        squares = torch.zeros(self.probes, self.batch, dtype=dtype, device=self.device)
        terms = torch.zeros_like(squares)
        for i, one in enumerate(parts):
            own = _inner(one, one)
            squares += own
            terms += own
            for other in parts[:i]:
                squares += 2 * _inner(one, other)
        return squares, terms

    def _squares_again(self, squares: Tensor, lost: Tensor) -> Tensor:
        """Those in which terms cancel, anew by the gradients in float64."""
        squares = squares.double()
        probes, samples = lost.nonzero(as_tuple=True)
        for i, b in zip(probes.split(lost.shape[1]), samples.split(lost.shape[1]), strict=True):
            some = [replace(t, rows=_pick(t.rows, i, b), columns=_pick(t.columns, i, b)) for t in self.terms]
            picked = Weighted(tuple(some), 1, len(b))._in(torch.float64)
            squares[i, b] = square_sum(picked.rows(), (2,))[0]
        return squares

    def rows(self) -> Tensor:
        """The gradients themselves, shape (k, B, M·N)."""
        formed = functools.reduce(torch.add, (term.formed() for term in self.terms))
        return formed.expand(self.probes, self.batch, *self.shape).flatten(2)

    def summed(self) -> Tensor:
        """The gradients summed over samples, shape (k, M·N); they are not formed one by one."""
        shape = (self.probes, self.batch, -1, -1)
        total = torch.zeros(self.probes, *self.shape, dtype=self.dtype, device=self.device)
        for term in (term.to(self.dtype) for term in self.terms):
            rows, columns = term.rows.expand(shape).flatten(1, 2), term.columns.expand(shape).flatten(1, 2)
            product = rows.mT @ columns
            total += product if term.weights is None else product * term.weights
        return total.flatten(1)

    def row_size(self) -> int:
        """M·N: entries of the parameter."""
        return self.shape[0] * self.shape[1]

    def add_tile(self, other: Factor, total: Tensor) -> None:
        """As :meth:`Factor.add_tile`."""
        Direct(self.rows()).add_tile(other, total)

    def settled(self, rows: int) -> Direct:
        """The gradients: every pair of rows would take a product with the matrix."""
        return Direct(self.rows()).settled(rows)


def _inner(one: Term, other: Term) -> Tensor:
    """Σ_ij (S∘S′)_ij (r∘r′)_i (c∘c′)_j, shape (k or 1, B or 1)."""
    rows, columns = one.rows * other.rows, one.columns * other.columns
    if one.weights is None and other.weights is None:
        return rows.sum(2) * columns.sum(2)
    weights = [term.weights for term in (one, other) if term.weights is not None]
    matrix = weights[0] * weights[-1] if len(weights) == 2 else weights[0]
    # The product with the matrix is taken on the side that has fewer vectors.
    if columns[..., 0].numel() <= rows[..., 0].numel():
        return ((columns @ matrix.mT) * rows).sum(2)
    return ((rows @ matrix) * columns).sum(2)


def _pick(x: Tensor, probes: Tensor, samples: Tensor) -> Tensor:
    """Some pairs of a probe and a sample: (k or 1, B or 1, ...) → (1, pairs, ...)."""
    i = probes if x.shape[0] > 1 else torch.zeros_like(probes)
    b = samples if x.shape[1] > 1 else torch.zeros_like(samples)
    return x[i, b].unsqueeze(0)


def _is_lost(squares: Tensor, terms: Tensor) -> Tensor:
    """Where terms cancel, so that the rounding of a sum of squares shows."""
    dtype = squares.dtype
    return ~(terms * (16 * torch.finfo(dtype).eps / _TOLERANCE[dtype]) <= squares)
