"""The sample side of an outer product: features of a layer's input, dense or given by indices.

A parameter's gradient is G = Σ_t δ_t ⊗ a_t over positions t. Its features a are the same for
every probe δ, so that what follows from them alone is computed once for all probes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "Features",
    "Lookup",
    "SampleSide",
    "in_one_dtype",
    "in_range",
    "ones",
    "side_by_side",
    "square_sum",
    "widened",
]

# Between these the largest of some sums of squares in float32 is one to trust: nothing in it left the
# range, and what fell below it is too small to matter.
_SMALLEST, _LARGEST = 1e-18, 1e26
# Multiply-adds of a matrix product that take as long as adding to a number somewhere in memory.
_SCATTERED = 64


class SampleSide(Protocol):
    """The side of an outer product that does not depend on the probe: (B, groups, T, features)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the features; ``torch.bool`` for one-hot vectors."""
        ...

    @property
    def positions(self) -> int:
        """Number of positions T."""
        ...

    @property
    def width(self) -> int:
        """Number of features."""
        ...

    @property
    def work(self) -> int:
        """Multiply-adds of :meth:`contract` for one number of δ, in time."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        ...

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The features themselves, shape (B, groups, T, features); one-hot vectors in ``dtype``."""
        ...

    def gram(self, other: SampleSide) -> Tensor:
        """Inner products between the positions of all pairs of samples: (B, B′, groups, T, T′)."""
        ...

    def own_gram(self) -> Tensor:
        """Inner products between the positions of each sample: (B, groups, T, T)."""
        ...

    def picked(self, samples: Tensor) -> SampleSide:
        """Some samples, by their numbers; one may come several times."""
        ...

    def to(self, dtype: torch.dtype) -> SampleSide:
        """The same in another dtype."""
        ...

    def compact(self) -> SampleSide:
        """Other features with the same inner products within each sample, as few as there are positions."""
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
    def dtype(self) -> torch.dtype:
        """Of the features."""
        return self.values.dtype

    @property
    def positions(self) -> int:
        """Number of positions T."""
        return self.values.shape[2]

    @property
    def width(self) -> int:
        """Number of features."""
        return self.values.shape[3]

    @property
    def work(self) -> int:
        """As many as there are features."""
        return self.width

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.values.nbytes

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The features as they are."""
        return self.values

    def gram(self, other: SampleSide) -> Tensor:
        """As :meth:`SampleSide.gram`."""
        values = widened(self.values)
        return torch.einsum("bgti,cgui->bcgtu", *in_one_dtype(values, widened(other.dense(values.dtype))))

    def own_gram(self) -> Tensor:
        """As :meth:`SampleSide.own_gram`."""
        return self._lengths if self.positions == 1 else widened(self.values) @ widened(self.values).mT

    @functools.cached_property
    def _lengths(self) -> Tensor:
        """Of one position: many small products of matrices take longer than their numbers."""
        values = widened(self.values)
        return (values * values).sum(3, keepdim=True)

    def picked(self, samples: Tensor) -> Features:
        """As :meth:`SampleSide.picked`."""
        return Features(self.values[samples])

    def to(self, dtype: torch.dtype) -> Features:
        """As :meth:`SampleSide.to`."""
        return Features(self.values.to(dtype))

    def compact(self) -> Features:
        """Themselves."""
        return self

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
    def dtype(self) -> torch.dtype:
        """Of numbers that are 0 and 1."""
        return torch.bool

    @property
    def positions(self) -> int:
        """Number of positions T."""
        return self.index.shape[1]

    @property
    def width(self) -> int:
        """Number of features."""
        return self.size

    @property
    def work(self) -> int:
        """An addition, wherever in memory."""
        return _SCATTERED

    @property
    def nbytes(self) -> int:
        """Memory that the indices take."""
        return self.index.nbytes

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The one-hot vectors themselves, shape (B, 1, T, size)."""
        return torch.nn.functional.one_hot(self.index, self.size).to(dtype).unsqueeze(1)

    def gram(self, other: SampleSide) -> Tensor:
        """As :meth:`SampleSide.gram`."""
        if isinstance(other, Lookup):
            equal = self.index[:, None, :, None] == other.index[None, :, None, :]
            return equal.unsqueeze(2)
        values = other.dense(torch.float64)
        return Features(self.dense(values.dtype)).gram(Features(values))

    def own_gram(self) -> Tensor:
        """As :meth:`SampleSide.own_gram`."""
        return (self.index[:, :, None] == self.index[:, None, :]).unsqueeze(1)

    def picked(self, samples: Tensor) -> Lookup:
        """As :meth:`SampleSide.picked`."""
        return Lookup(self.index[samples], self.size)

    def to(self, dtype: torch.dtype) -> Lookup:
        """Itself: its numbers are 0 and 1."""
        return self

    def compact(self) -> Lookup:
        """The ranks of a sample's indices among its own, in place of the indices."""
        if self.size <= self.positions:
            return self
        ordered, order = self.index.sort(dim=1)
        ranks = torch.zeros_like(ordered)
        ranks[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
        return Lookup(torch.empty_like(ranks).scatter_(1, order, ranks), self.positions)

    def contract(self, probe_side: Tensor) -> Tensor:
        """As :meth:`SampleSide.contract`."""
        k, batch, groups, _, outputs = probe_side.shape
        # Words have one group. All samples' tables are one, a sample's after the other's.
        starts = torch.arange(batch, device=self.index.device).unsqueeze(1) * self.size
        out = probe_side.new_zeros(k, batch * self.size, outputs)
        out.index_add_(1, (self.index + starts).reshape(-1), probe_side.reshape(k, -1, outputs))
        return out.reshape(k, batch, groups, self.size, outputs).transpose(3, 4)

    def joined(self) -> Lookup:
        """As :meth:`SampleSide.joined`."""
        return Lookup(self.index.reshape(1, -1), self.size)


def ones(probe_side: Tensor) -> Features:
    """The features of a bias, 1 at every position, for a δ of shape (k, B, groups, T, O)."""
    return Features(probe_side.new_ones(*probe_side.shape[1:4], 1))


def side_by_side(sides: Sequence[SampleSide], dtype: torch.dtype) -> SampleSide:
    """The positions of several sides of the same width, one after the other.

    Args:
        sides: They stay indices if all of them are.
        dtype: Of one-hot vectors, where some are indices and some are dense.
    """
    looked_up = [side for side in sides if isinstance(side, Lookup)]
    if len(looked_up) == len(sides):
        return Lookup(torch.cat([side.index for side in looked_up], dim=1), looked_up[0].size)
    return Features(torch.cat([side.dense(dtype) for side in sides], dim=2))


def square_sum(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Σx² over ``dims``, or over all of them; in float64 where the range of float32 is too small."""
    # Pairwise summation keeps float32 right to about 1e-7.
    x = widened(x)
    total = (x * x).sum(dims)
    if in_range(total) or not bool(x.any()):
        return total
    x = x.double()
    return (x * x).sum(dims)


def in_range(squares: Tensor) -> bool:
    """Whether sums of squares, or of products of squares, came out in the range of their dtype."""
    if squares.dtype == torch.float64 or not squares.numel():
        return True
    # With nan it is nan, which is in no range.
    return _SMALLEST <= float(squares.amax()) <= _LARGEST


def widened(x: Tensor) -> Tensor:
    """Half precision as float32: sums of products soon leave its range and precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def in_one_dtype(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)
