"""What autocast does to an operation's arguments, as casts that a graph can hold.

Autocast acts below the level on which operations are recorded. Which casts it made is found by
trying: those that give the same result without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.arguments import leaves_of

__all__ = ["active_autocast", "cast_by", "casts_of", "without_autocast"]


def active_autocast(values: Any) -> torch.dtype | None:
    """The dtype to which autocast lowers what runs on the devices of these values, if it is on."""
    for device in _devices(values):
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            lowered: torch.dtype = torch.get_autocast_dtype(device)
            return lowered
    return None


def _devices(values: Any) -> set[str]:
    return {leaf.device.type for leaf in leaves_of(values) if isinstance(leaf, Tensor)}


@contextmanager
def without_autocast(values: Any) -> Iterator[None]:
    """A context in which the devices of some values have no autocast."""
    with ExitStack() as stack:
        for device in _devices(values):
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def casts_of(func: Any, args: Any, kwargs: Any, result: Any, lowered: torch.dtype) -> torch.dtype | None:
    """The dtype to which autocast cast an operation's floating arguments; ``None`` if it cast none.

    Args:
        func: The operation.
        args: Its arguments.
        kwargs: Its named arguments.
        result: What it gave.
        lowered: The dtype of the lower precision.

    Raises:
        StructureError: If no casts of all arguments give the same.
    """
    floating = {
        leaf.dtype
        for leaf in pytree.tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor) and _is_cast(leaf)
    }
    if not floating:
        return None
    for dtype in (None, lowered, torch.float32):
        if _same(_result_without(func, *cast_by(dtype, (args, kwargs))), result):
            return dtype
    raise StructureError(f"the model runs {func} under autocast, which does more than to cast its arguments")


def cast_by(dtype: torch.dtype | None, values: Any) -> Any:
    """The values with floating tensors in another dtype, but for those that autocast leaves alone."""
    if dtype is None:
        return values
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(dtype) if _is_cast(leaf) else leaf, values)


def _is_cast(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype != torch.float64


def _result_without(func: Any, args: Any, kwargs: Any) -> Any:
    try:
        with torch.no_grad(), without_autocast((args, kwargs)):
            return func(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError):
        # Arguments of several dtypes, which autocast makes one.
        return None


def _same(found: Any, expected: Any) -> bool:
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    return len(ours) == len(theirs) and all(_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _equal(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor):
        return bool(found == expected)
    if not isinstance(found, Tensor) or found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    expected = expected.detach()
    return bool(((found == expected) | ((found != found) & (expected != expected))).all())
