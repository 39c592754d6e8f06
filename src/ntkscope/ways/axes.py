"""Axes of the state that a partial trace keeps, and those that it traces over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axes", "default_names"]

Index = NDArray[np.int64]


def default_names(axes: int, sample_axis: int | None) -> tuple[str, ...]:
    """Names of the axes of a state where the caller gives none.

    They are ``"batch"`` for the axis of the samples, if it is known, and ``"axis0"``, ``"axis1"`` ... by
    their places for the others.

    >>> default_names(3, 1)
    ('axis0', 'batch', 'axis2')
    """
    return tuple("batch" if axis == sample_axis else f"axis{axis}" for axis in range(axes))


@dataclass(frozen=True, eq=False)
class Axes:
    """The state's axes, divided.

    Attributes:
        keep: Names of the kept axes, in the order of the matrix.
        kept_shape: Their sizes.
        table: Position in the flattened state of every kept index a and traced index c: (A, C).
    """

    keep: tuple[str, ...]
    kept_shape: tuple[int, ...]
    table: Index

    @classmethod
    def of(
        cls, shape: tuple[int, ...], keep: Any, names: Sequence[str] | None, sample_axis: int | None
    ) -> Axes:
        """Reads what to keep.

        Args:
            shape: Of the state.
            keep: Names or numbers of axes, or one of them.
            names: A name for every axis.
            sample_axis: Which one holds the samples, if it is known.

        Raises:
            TypeError: If an axis is neither a name nor a number.
            ValueError: If there is no such axis, or it is named twice.
        """
        known = default_names(len(shape), sample_axis) if names is None else _checked(names, shape)
        wanted = (keep,) if isinstance(keep, (str, int)) else tuple(keep)
        kept = [_place(axis, known, shape) for axis in wanted]
        if len(set(kept)) != len(kept):
            raise ValueError(f"keep={keep!r} names an axis twice; name every axis to keep once")
        traced = [axis for axis in range(len(shape)) if axis not in kept]
        sizes = tuple(shape[axis] for axis in kept)
        places = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).transpose(kept + traced)
        table = places.reshape(int(np.prod(sizes)), -1)
        return cls(tuple(known[axis] for axis in kept), sizes, table)

    @property
    def size(self) -> int:
        """A, entries of the kept axes."""
        return self.table.shape[0]

    @property
    def traced(self) -> int:
        """C, entries of the traced axes."""
        return self.table.shape[1]


def _checked(names: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"names must be a text for every axis, found {names!r}; pass such as ('batch', 'unit')"
        )
    found = tuple(names)
    if len(found) != len(shape) or len(set(found)) != len(found):
        raise ValueError(
            f"names={found!r} does not name the axes of a state of shape {shape}; give {len(shape)} "
            "different names, in the order of the axes"
        )
    return found


def _place(axis: Any, names: tuple[str, ...], shape: tuple[int, ...]) -> int:
    if isinstance(axis, str):
        if axis in names:
            return names.index(axis)
        raise ValueError(f"no axis is named {axis!r}; the axes of the state {shape} are {', '.join(names)}")
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"an axis is a name or a number, found {axis!r}; pass such as keep=('batch',)")
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"the state has no axis {axis}, its shape is {shape}; count from 0")
    return int(axis) % len(shape)


@dataclass(frozen=True, eq=False)
class SampleRows:
    """How the kept and traced entries of a state lie in its samples.

    Attributes:
        across: Whether the samples are kept.
        rows: Kept entries of every sample: (rows, B) numbers of kept indices, or (rows, 1) where the
            samples are traced over.
        columns: Traced entries of every sample: (columns, B) numbers of traced indices, or (columns, 1)
            where the samples are kept.
    """

    across: bool
    rows: Index
    columns: Index

    @classmethod
    def of(cls, axes: Axes, index: Index) -> SampleRows:
        """Finds them.

        Args:
            axes: What is kept.
            index: Position in the state of every output of every sample, shape (B, s).
        """
        batch = len(index)
        sample = np.empty(index.size, dtype=np.int64)
        sample[index] = np.arange(batch)[:, None]
        owner = sample[axes.table]
        across = bool((owner == owner[:, :1]).all())
        by_row = _members(owner[:, 0] if across else np.zeros(axes.size, dtype=np.int64))
        by_column = _members(np.zeros(axes.traced, dtype=np.int64) if across else owner[0])
        return cls(across, by_row, by_column)


def _members(owner: Index) -> Index:
    """The places of every owner's members, (members of one, owners)."""
    order = np.argsort(owner, kind="stable")
    owners = int(owner.max()) + 1
    return order.reshape(owners, -1).T
