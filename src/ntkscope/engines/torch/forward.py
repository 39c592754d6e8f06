"""Products Ju by the first way that a model allows, each held against Jᵀz before it is used.

Forward mode is quickest. Where an operation has none, or a wrong one, Ju is the derivative of
z ↦ Jᵀz by plain double backward, which knows every function that has a second derivative. Where
there is neither, reverse mode alone is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vmap

from ntkscope.engines.torch.adjoint import Forward, is_transpose
from ntkscope.engines.torch.errors import first_line
from ntkscope.engines.torch.memory import is_out_of_memory
from ntkscope.engines.torch.modes import load_forward_mode
from ntkscope.engines.torch.state import Parameters, StateFunction
from ntkscope.errors import argument

__all__ = ["DoubleBackward", "ForwardMode", "choose_forward"]


class ForwardMode:
    """By torch's forward mode, over all rows at once where the operations allow it.

    Args:
        function: The state.
    """

    def __init__(self, function: StateFunction) -> None:
        load_forward_mode()
        self._function = function
        self._vectorized = True

    def push(self, block: Parameters) -> Tensor:
        """As :meth:`Forward.push`."""
        with self._function.operations():
            if self._vectorized:
                try:
                    return vmap(self._one)(block)
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
            # Operations refuse a batch in many words: whether single rows pass is what tells.
            count = len(next(iter(block.values())))
            rows = [self._one({name: b[index] for name, b in block.items()}) for index in range(count)]
            self._vectorized = False
            return torch.stack(rows)

    def of(self, function: StateFunction) -> ForwardMode:
        """As :meth:`Forward.of`."""
        return type(self)(function)

    def _one(self, row: Parameters) -> Tensor:
        result: Tensor = jvp(self._function, (self._function.parameters,), (row,))[1]
        return result


class DoubleBackward:
    """The derivative of z ↦ Jᵀz, by autograd alone: one graph for all products.

    Args:
        function: The state.
    """

    def __init__(self, function: StateFunction) -> None:
        self._function = function
        leaves = {
            name: value.detach().clone().requires_grad_() for name, value in function.parameters.items()
        }
        with torch.enable_grad(), function.operations():
            state = function(leaves)
            self._z = torch.zeros_like(state).requires_grad_()
            found: Sequence[Tensor | None] = [None] * len(leaves)
            if state.requires_grad:
                found = torch.autograd.grad(
                    state, list(leaves.values()), self._z, create_graph=True, allow_unused=True
                )
        self._gradients = {
            name: gradient
            for name, gradient in zip(leaves, found, strict=True)
            if gradient is not None and gradient.requires_grad
        }
        self._vectorized = True

    def push(self, block: Parameters) -> Tensor:
        """As :meth:`Forward.push`."""
        count = len(next(iter(block.values())))
        if not self._gradients:
            return self._z.new_zeros(count, *self._z.shape).detach()
        rows = [block[name] for name in self._gradients]
        with self._function.operations():
            if self._vectorized and count > 1:
                try:
                    return self._derivative(rows, batched=True)
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
            found = [self._derivative([b[index] for b in rows], batched=False) for index in range(count)]
            self._vectorized = self._vectorized and count == 1
            return torch.stack(found)

    def of(self, function: StateFunction) -> DoubleBackward:
        """As :meth:`Forward.of`."""
        return type(self)(function)

    def _derivative(self, rows: list[Tensor], *, batched: bool) -> Tensor:
        (found,) = torch.autograd.grad(
            list(self._gradients.values()),
            self._z,
            rows,
            retain_graph=True,
            is_grads_batched=batched,
            allow_unused=True,
        )
        if found is None:
            shape = (len(rows[0]), *self._z.shape) if batched else self._z.shape
            return self._z.new_zeros(shape).detach()
        return found.detach()


def choose_forward(function: StateFunction) -> Forward:
    """The first way that runs, is finite and is the transpose of reverse mode.

    Costs three products Ju of each way that is tried, and a few in float64 where rounding hides the
    answer; reverse mode's are the state's witness.

    Raises:
        NotImplementedError: If there is none, with the remedy.
    """
    reasons = []
    ways: list[tuple[str, Callable[[StateFunction], Forward]]] = [
        ("forward mode", ForwardMode),
        ("a second derivative", DoubleBackward),
    ]
    for name, make in ways:
        try:
            forward = make(function)
            if is_transpose(forward, function):
                return forward
            reasons.append(f"{name} disagrees with reverse mode")
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reasons.append(f"no {name.removeprefix('a ')}: {first_line(error)}")
    raise NotImplementedError(
        "products Ju are not possible, since an operation of the model has neither a forward mode nor a "
        f"second derivative that is right ({'; '.join(reasons)}); use what needs reverse mode alone: "
        + argument("method", "exact", "per-sample", "gram", "rhutch")
    )
