"""Products Jᵀz by the first way of backward passes that gives what one pass of the user's own gave.

One forward pass is recorded for all of them, and a batch of rows goes back together. An operation may
refuse the batch; and a backward pass that changes what it kept (in place, or by a counter) gives other
numbers the second time, so that every row needs a forward pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.memory import is_out_of_memory
from ntkscope.engines.torch.state import Parameters, StateFunction
from ntkscope.engines.torch.witness import differing

__all__ = ["Pullback"]


class Pullback:
    """Jᵀz for blocks of rows.

    The first block is followed by the state's witness, on the same graph: one or two more backward
    passes, once.

    Args:
        function: The state.
    """

    def __init__(self, function: StateFunction) -> None:
        self._function = function
        self._recorded: tuple[Tensor, Parameters] | None = None
        self._ways = [self._together, self._one_by_one, self._anew]
        self._proven = False

    @property
    def is_batched(self) -> bool:
        """Whether the rows of a block go back together."""
        return len(self._ways) == 3

    def pull(self, z: Tensor) -> Parameters:
        """Jᵀz for every row of z: (k, *state) → (k, *parameter) each."""
        for index, way in enumerate(self._ways):
            is_last = index == len(self._ways) - 1
            try:
                found = way(z)
                if is_last or self._proven or self._agrees(way, min(2, len(z))):
                    # Only now, as errors of single rows, of whatever kind, may be the caller's.
                    self._ways, self._proven = self._ways[index:], True
                    return found
            except Exception as error:
                # Operations refuse a batch in many words: whether single rows pass is what tells.
                if is_out_of_memory(error) or is_last:
                    raise
            # What the backward passes may have changed is not used again.
            self._recorded, self._proven = None, False
        raise AssertionError("the last way returns or raises")

    def _agrees(self, way: Callable[[Tensor], Parameters], count: int) -> bool:
        """Whether the next backward passes of a way, after those before, give the witness."""
        witness = self._function.witness()
        rows = torch.stack([witness.probe.flip(0), witness.probe][-count:])
        found = way(rows)
        last = {name: block[-1] for name, block in found.items()}
        return not differing(witness.gradients, last, self._function.dtype)

    # The ways, quickest first.

    def _together(self, z: Tensor) -> Parameters:
        return self._by_grad(z, batched=True)

    def _one_by_one(self, z: Tensor) -> Parameters:
        rows = [self._by_grad(row, batched=False) for row in z]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _anew(self, z: Tensor) -> Parameters:
        """A forward pass for every row."""
        function = self._function
        rows = [function.gradients_of(row) for row in z]
        return {
            name: torch.stack([_or_zeros(row[name], value) for row in rows])
            for name, value in function.parameters.items()
        }

    def _by_grad(self, z: Tensor, *, batched: bool) -> Parameters:
        state, leaves = self._record()

        def zeros(value: Tensor) -> Tensor:
            return value.new_zeros(len(z), *value.shape) if batched else torch.zeros_like(value)

        gradients: Iterable[Any] = [None] * len(leaves)
        if state.requires_grad:
            with self._function.operations():
                gradients = torch.autograd.grad(
                    state,
                    list(leaves.values()),
                    z,
                    retain_graph=True,
                    is_grads_batched=batched,
                    allow_unused=True,
                )
        found = zip(leaves.items(), gradients, strict=True)
        return {
            name: zeros(value.detach()) if grad is None else _dense(grad) for (name, value), grad in found
        }

    def _record(self) -> tuple[Tensor, Parameters]:
        if self._recorded is None:
            function = self._function
            leaves = {name: value.clone().requires_grad_() for name, value in function.parameters.items()}
            with torch.enable_grad():
                self._recorded = (function(leaves), leaves)
        return self._recorded


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def _or_zeros(gradient: Tensor | None, value: Tensor) -> Tensor:
    return torch.zeros_like(value) if gradient is None else gradient
