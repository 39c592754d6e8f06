"""How far to go: tolerances, budgets, seed and progress, as one object that is checked once."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict, cast

import numpy as np

from ntkscope.errors import argument
from ntkscope.results import Estimate

__all__ = [
    "DEFAULT_BUDGET",
    "DEFAULT_RTOL",
    "Limits",
    "Method",
    "Options",
    "PartialMethod",
    "Progress",
    "SplitMethod",
    "TraceMethod",
    "TraceSource",
    "check_chunk_size",
    "options_of",
    "parse_memory",
]

#: Methods of every metric.
Method: TypeAlias = Literal["auto", "exact", "per-sample", "sketch", "nystrom", "gram", "hutch++"]

#: Methods of the trace of one kernel.
TraceMethod: TypeAlias = Literal[
    "auto", "exact", "per-sample", "per-sample-forward", "sketch", "nystrom", "gram", "hutch++",
    "xnystrace", "xtrace", "hutchinson", "rhutch", "fhutch",
]  # fmt: skip

#: Where the trace inside an effective rank may come from.
TraceSource: TypeAlias = Literal["exact", "per-sample", "per-sample-forward"]

#: Methods of splits.
SplitMethod: TypeAlias = Literal["auto", "exact", "per-sample", "gram"]

#: Methods of partial traces.
PartialMethod: TypeAlias = Literal["auto", "exact", "reverse", "forward"]

#: ``progress(estimate, spent, budget)``: the estimate that is farthest from its
#: tolerance, the products spent, and the most that may be spent (``None``: open).
Progress: TypeAlias = Callable[[Estimate, int, int | None], None]

#: Bytes that one step of work may take where the caller says nothing.
DEFAULT_BUDGET = 1 << 30

#: The relative tolerance where nothing else says how far to go.
DEFAULT_RTOL = 0.01


@dataclass(frozen=True, kw_only=True)
class Options:
    """How far a measurement goes, which probes it draws, and who is told.

    Every metric takes these whole (``options=``) or by keyword; a keyword beside ``options=``
    takes the place of its field.

    Attributes:
        rtol: Relative tolerance; 0.01 where neither this, ``atol`` nor ``products`` is given.
        atol: Absolute tolerance; with both, the wider one counts.
        products: Products to spend, in place of a tolerance.
        max_products: Most products that may be spent for a tolerance.
        seconds: Most seconds that may be spent; looked at between products.
        seed: Of the probes: a whole number from 0 up to 64 bits.
        progress: Show a bar, or a function of (estimate, spent, budget) to call.

    Raises:
        TypeError: For a value of the wrong kind, or a budget that is not a whole number.
        ValueError: For one that makes no sense: a tolerance that is not positive, products
            together with a tolerance, a negative seed.

    >>> Options(rtol=0.05).tolerance
    0.05
    >>> Options(products=60).tolerance is None
    True
    """

    rtol: float | None = None
    atol: float | None = None
    products: int | None = None
    max_products: int | None = None
    seconds: float | None = None
    seed: int = 0
    progress: bool | Progress = False

    def __post_init__(self) -> None:
        if self.products is not None and not (self.rtol is self.atol is self.max_products is None):
            raise ValueError(
                f"found products={self.products} together with rtol, atol or max_products; pass either a "
                "fixed number of products or a tolerance (max_products= bounds the products of a tolerance)"
            )
        for name in ("rtol", "atol", "seconds"):
            _check_positive(name, getattr(self, name))
        for name in ("products", "max_products"):
            _check_whole(name, getattr(self, name))
        _check_seed(self.seed)

    @property
    def tolerance(self) -> float | None:
        """The relative tolerance: what was given, 0.01 if nothing was, ``None`` beside a budget or atol."""
        if self.products is not None or (self.rtol is None and self.atol is not None):
            return None
        return DEFAULT_RTOL if self.rtol is None else self.rtol

    @property
    def to_tolerance(self) -> bool:
        """Whether a tolerance ends the run, not a fixed number of products."""
        return self.products is None


class Limits(TypedDict, total=False):
    """The fields of :class:`Options` that are given by keyword alone."""

    rtol: float | None
    atol: float | None
    max_products: int | None
    seconds: float | None
    progress: bool | Progress


def options_of(options: Options | None, products: int | None, seed: int | None, limits: Limits) -> Options:
    """The options with what was given by keyword in its place.

    Raises:
        TypeError: For a keyword that is none of the options, and as :class:`Options`.
        ValueError: As :class:`Options`.
    """
    given: Mapping[str, Any] = {"products": products, "seed": seed, **cast(dict[str, Any], limits)}
    known = [field.name for field in dataclasses.fields(Options)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; the options are {', '.join(known)}")
    if options is not None and not isinstance(options, Options):
        raise TypeError(f"options must be ntkscope.Options, found {options!r}; pass Options(rtol=0.01)")
    chosen = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(options or Options(), **chosen)


def check_chunk_size(chunk_size: Any) -> None:
    """An error for a chunk that makes no sense."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, (int, float, type(None))):
        raise TypeError(f"chunk_size must be a number, found {chunk_size!r}; leave it out to have it chosen")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, found {chunk_size}; leave it out to have it chosen")


_PREFIXES = enumerate(("k", "m", "g", "t"), 1)
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{middle}": base**power
    for power, prefix in _PREFIXES
    for middle, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}


def parse_memory(memory: Any) -> int | None:
    """A number of bytes; ``None`` stays.

    Args:
        memory: A number, or a text such as ``"4GiB"``, ``"1.5 GB"`` or ``"300 MiB"``.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is not positive, or no size.

    >>> parse_memory("4GiB"), parse_memory("1.5 GB"), parse_memory(100)
    (4294967296, 1500000000, 100)
    """
    if memory is None:
        return None
    if isinstance(memory, bool) or not isinstance(memory, (int, float, str)):
        raise TypeError(f"memory must be bytes or a text, found {memory!r}; pass memory='4GiB'")
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zA-Z]*)\s*", memory)
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(
                f"{argument('memory', memory)} is no size; write a number with B, KiB, MiB, GiB or TiB, "
                "such as '4GiB'"
            )
        memory = float(match[1]) * _UNITS[match[2].lower()]
    if not 1 <= memory < math.inf:
        raise ValueError(f"memory must be a byte or more, found {memory}; use a size such as '4GiB'")
    return int(memory)


def check_minimum(options: Options, minimum: int) -> None:
    """An error for a budget below what a method needs.

    Raises:
        ValueError: If it is.
    """
    for name in ("products", "max_products"):
        budget = getattr(options, name)
        if budget is not None and budget < minimum:
            raise ValueError(
                f"{argument(name, budget)} is too small: this method needs at least {minimum} products; "
                f"use {argument(name, minimum)} or more, or another method"
            )


def _check_positive(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, found {value!r}; use a value such as {name}=0.01")
    if not float(value) > 0:
        raise ValueError(f"{name} must be positive, found {value}; use a value such as {name}=0.01")


def _check_whole(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value // 1:
        raise TypeError(f"{name} must be a whole number, found {value!r}; pass an int")
    if value < 1:
        raise ValueError(
            f"{name}={value} is too small: a method needs at least 1 product; "
            f"use {name}=1 or more, or another method"
        )


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an int, found {seed!r}; pass a number such as seed=0")
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}; pass a number such as seed=0")
    if seed >= 1 << 64:
        raise ValueError(f"seed must have at most 64 bits, found {seed}; pass a number such as seed=0")
