"""Reentrant checkpoints (``use_reentrant=True``) as plain calls: same numbers, more memory.

Their backward pass runs ``.backward()`` inside, which neither ``torch.autograd.grad`` nor ``torch.func``
can pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint
from torch import Tensor

from ntkscope.engines.torch.compat import pytree

__all__ = ["as_in_training", "plain_checkpoints"]


class _PlainCall:
    """What ``torch.utils.checkpoint.checkpoint`` finds in the place of its function."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        result = function(*args)
        if _in_training and not _requires_grad(args) and _requires_grad(result):
            raise ValueError(
                "a checkpoint none of whose inputs requires a gradient gives none to the parameters inside "
                "of it, so that training leaves them as they are; pass use_reentrant=False to checkpoint()"
            )
        return result


_in_training = 0


def _requires_grad(values: Any) -> bool:
    return any(isinstance(x, Tensor) and x.requires_grad for x in pytree.tree_leaves(values))


@contextmanager
def plain_checkpoints() -> Iterator[None]:
    """Runs what is inside of reentrant checkpoints without them."""
    module: Any = torch.utils.checkpoint
    before = module.CheckpointFunction
    try:
        module.CheckpointFunction = _PlainCall
        yield
    finally:
        module.CheckpointFunction = before


@contextmanager
def as_in_training() -> Iterator[None]:
    """For a forward pass with gradients by plain autograd: refuses checkpoints that would give none.

    Raises:
        ValueError: Where the plain call has gradients that the checkpoint has not.
    """
    global _in_training
    _in_training += 1
    try:
        yield
    finally:
        _in_training -= 1
