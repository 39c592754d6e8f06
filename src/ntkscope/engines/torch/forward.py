"""Products Ju by the first way that a model allows, each held against Jᵀz before it is used.

Forward mode is quickest. Where an operation has none, or a wrong one, Ju is the derivative of
z ↦ Jᵀz by plain double backward, which knows every function that has a second derivative. Where
there is neither, reverse mode alone is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import jvp, vmap

from ntkscope.engines.torch.errors import first_line
from ntkscope.engines.torch.memory import is_out_of_memory
from ntkscope.engines.torch.modes import CHECK_SEED, load_forward_mode
from ntkscope.engines.torch.state import Parameters, StateFunction

__all__ = ["DoubleBackward", "Forward", "ForwardMode", "choose_forward", "is_transpose"]

#: Directions in which a way is tried.
_TRIALS = 3
#: By which they are multiplied to see their rounding; no power of two, which would round alike.
_MULTIPLE = 0.7


class Forward(Protocol):
    """One way to products Ju."""

    def push(self, block: Parameters) -> Tensor:
        """Ju for every row of a block of directions: (k, *parameter) each, to (k, *state)."""
        ...


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

    Costs three products Ju of each way that is tried; reverse mode's are the state's witness.

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
        "method='exact', 'per-sample', 'gram' or 'rhutch'"
    )


def is_transpose(forward: Forward, function: StateFunction) -> bool:
    """Whether ⟨z, Ju⟩ = ⟨Jᵀz, u⟩ up to rounding, in directions that let every parameter count alike.

    The rounding of a sum of terms is that of their root sum of squares; where that is not met, it is
    measured, by the same products of multiples of z and u. Entries that reverse mode knows nothing of
    (the padding of an embedding) are in u too.
    """
    witness = function.witness()
    block = _directions(witness.gradients, function)
    pushed = forward.push(block).reshape(_TRIALS, -1).double()
    if not bool(pushed.isfinite().all()):
        return False
    z = witness.probe.reshape(1, -1).double()
    products = pushed * z
    expected, squares = _inner(witness.gradients, block)
    epsilon = torch.finfo(function.dtype).eps
    length = pushed.norm(dim=1) * z.norm()
    tolerance = epsilon * (300 * (products.norm(dim=1) + squares.sqrt()) + 8 * length)
    difference = (products.sum(1) - expected).abs()
    if bool((difference <= tolerance).all()):
        return True
    again = {name: b * _MULTIPLE for name, b in block.items()}
    forward_noise = (forward.push(again).reshape(_TRIALS, -1).double() / _MULTIPLE - pushed).abs().max()
    reverse = function.gradients_of(witness.probe * _MULTIPLE)
    other, _ = _inner({n: None if g is None else g / _MULTIPLE for n, g in reverse.items()}, block)
    noise = (other - expected).abs().max() + forward_noise * z.norm()
    return bool((difference <= tolerance + 10 * noise).all())


def _inner(gradients: Mapping[str, Tensor | None], block: Parameters) -> tuple[Tensor, Tensor]:
    """⟨g, u⟩ of every direction, and the sum of the squares of its terms."""
    device = next(iter(block.values())).device
    total, squares = (torch.zeros(_TRIALS, dtype=torch.float64, device=device) for _ in range(2))
    for name, gradient in gradients.items():
        if gradient is not None:
            terms = (gradient.unsqueeze(0).double() * block[name].double()).reshape(_TRIALS, -1)
            total += terms.sum(1)
            squares += (terms**2).sum(1)
    return total, squares


def _directions(gradients: Mapping[str, Tensor | None], function: StateFunction) -> dict[str, Any]:
    """Random directions as long as the inverse of the gradients that they meet."""
    generator = torch.Generator().manual_seed(CHECK_SEED)
    sizes = {name: 0.0 if g is None else float(g.double().norm()) for name, g in gradients.items()}
    largest = max(sizes.values(), default=0.0) or 1.0
    block = {}
    for name, value in function.parameters.items():
        u = torch.randn(_TRIALS, *value.shape, generator=generator, dtype=torch.float64)
        scale = largest / max(sizes[name], 0.1 * largest)
        block[name] = (scale * u).to(value.device, value.dtype)
    return block
