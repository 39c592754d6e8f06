"""Rows that a boolean mask selects, of one sample: all of them, with those that it does not marked.

How many rows ``x[mask]`` has depends on values, so that every number would be a graph of its own. Of one
sample all rows are taken, and what is written back where the mask is false is left out again. What goes
on between them must treat row by row, as a router's experts do; the check of the samples says whether it
does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import TorchFunctionMode

__all__ = ["RoutedAlone", "RoutingSeen"]

_READS = {Tensor.__getitem__}
_WRITES = {Tensor.__setitem__}
_PLACES = {torch.nonzero, Tensor.nonzero}
_ADDS = {torch.index_add, Tensor.index_add, Tensor.index_add_}
_COUNTS = {torch.any, Tensor.any, torch.sum, Tensor.sum, torch.count_nonzero, Tensor.count_nonzero}
_COMPARISONS = {
    getattr(owner, name) for name in ("gt", "ge", "lt", "le", "eq", "ne") for owner in (torch, Tensor)
} | {getattr(Tensor, f"__{name}__") for name in ("gt", "ge", "lt", "le", "eq", "ne")}


def _mask_of(index: Any) -> Tensor | None:
    """The mask that an index starts with, where it is the only tensor."""
    first = index[0] if isinstance(index, tuple) and index else index
    others = index[1:] if isinstance(index, tuple) else ()
    is_mask = isinstance(first, Tensor) and first.dtype == torch.bool and first.dim() > 0
    return first if is_mask and not any(isinstance(other, Tensor) for other in others) else None


def _selects(func: Callable[..., Any], args: Any) -> bool:
    """Whether an operation's result has as many rows as a mask has ones."""
    if func in _READS | _WRITES:
        return _mask_of(args[1]) is not None
    if func is torch.where:
        return len(args) == 1
    return func in _PLACES


class RoutingSeen(TorchFunctionMode):
    """Sees whether masks select rows.

    Attributes:
        found: Whether one does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.found = self.found or _selects(func, args)
        return func(*args, **(kwargs or {}))


class RoutedAlone(TorchFunctionMode):
    """Takes all rows where a mask selects some."""

    def __init__(self) -> None:
        super().__init__()
        #: By identity: indices, with the tensor and which of them are meant.
        self._indices: dict[int, tuple[Tensor, Tensor]] = {}
        #: Counts of a mask's ones and what follows from them, as if all were selected.
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__ and id(args[0]) in self._counts:
            return bool(self._counts[id(args[0])][1])
        if func in _READS and (mask := _mask_of(args[1])) is not None:
            return _read(args[0], mask, args[1])
        if func in _WRITES and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return _write(args[0], args[1], args[2])
        if func in _WRITES and isinstance(args[1], Tensor) and id(args[1]) in self._indices:
            _, meant = self._indices[id(args[1])]
            rows = args[0][args[1]]
            return func(args[0], args[1], torch.where(_as_rows(meant, rows), args[2], rows))
        if func in _PLACES or (func is torch.where and len(args) == 1):
            return self._places(args[0], kwargs.get("as_tuple", func is torch.where))
        if func in _ADDS:
            args = self._adds(*args)
        result = func(*args, **kwargs)
        self._follow(func, args, kwargs, result)
        return result

    def _places(self, mask: Tensor, as_tuple: bool) -> Any:
        """The places of all entries, of which those are meant where the mask is not 0."""
        meant = (mask != 0).flatten()
        axes = [torch.arange(size, device=mask.device) for size in mask.shape]
        places = [grid.flatten() for grid in torch.meshgrid(*axes, indexing="ij")]
        found = places if as_tuple else [torch.stack(places, dim=1)]
        for one in found:
            self._indices[id(one)] = one, meant
        return tuple(found) if as_tuple else found[0]

    def _adds(self, written: Tensor, axis: Any, index: Tensor, source: Tensor, *rest: Any) -> Any:
        """The arguments of an ``index_add`` that leaves out what is not meant."""
        if id(index) in self._indices and axis == 0:
            _, meant = self._indices[id(index)]
            source = torch.where(_as_rows(meant, source), source, 0)
        return written, axis, index, source, *rest

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """What comes of counts and of indices is remembered."""
        first = args[0] if args else None
        if not isinstance(result, Tensor) or not isinstance(first, Tensor):
            return
        if func in _COUNTS and first.dtype == torch.bool and not result.dim():
            self._counts[id(result)] = result, func(torch.ones(first.shape, dtype=torch.bool))
        elif func in _COMPARISONS and id(first) in self._counts and not isinstance(args[1], Tensor):
            self._counts[id(result)] = result, func(self._counts[id(first)][1], args[1])
        elif id(first) in self._indices and result.dtype == first.dtype:
            _, meant = self._indices[id(first)]
            if result.shape[:1] == meant.shape:
                self._indices[id(result)] = result, meant


def _as_rows(mask: Tensor, x: Tensor) -> Tensor:
    """A mask over the first axes of a tensor, to be broadcast over the others."""
    return mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim()))


def _read(x: Tensor, mask: Tensor, index: Any) -> Tensor:
    """``x[mask]`` with the rows that it leaves out."""
    # A copy, as what a mask selects: it may be written into.
    rows = x.clone().flatten(0, mask.dim() - 1)
    rest = index[1:] if isinstance(index, tuple) else ()
    return rows[(slice(None), *rest)] if rest else rows


def _write(x: Tensor, mask: Tensor, value: Any) -> None:
    """``x[mask] = value`` for a value with the rows that it leaves out."""
    if isinstance(value, Tensor) and value.dim():
        rows = (mask.numel(), *x.shape[mask.dim() :])
        value = value.to(x.dtype).expand(rows).reshape(x.shape)
    x.copy_(torch.where(_as_rows(mask, x), value, x))
