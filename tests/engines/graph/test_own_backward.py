"""Functions with a backward of their own: entry by entry they keep the structure, others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agreement import random
from inside import refusal, structure
from ntkscope import NTK
from zoo import Function

autograd = torch.autograd.Function


class _Spike(autograd):
    """A step whose gradient is a smooth slope."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient / (1 + x.abs()) ** 2


class _Rounded(autograd):
    """Rounded, with a gradient where it is not clipped; in the older form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float) -> Tensor:
        ctx.inside = x.abs() < 8 * step
        return (x / step).round().clamp(-8, 8) * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.inside, None


class _Reversed(autograd):
    """The identity, with the gradient turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -2 * gradient


class _Turned(autograd):
    """A gradient that is no entry's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.flip(-1)


class _Scaled(autograd):
    """Of two tensors that both have a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return 2 * gradient * scale, (gradient * x).sum(0)


def _recurrent(m: Any, x: Tensor) -> Tensor:
    potential, total = m.inward(x), torch.zeros_like(m.inward(x))
    for _ in range(3):
        spikes = _Spike.apply(potential - 0.1)
        potential = 0.9 * potential * (1 - spikes) + m.inward(x)
        total = total + spikes
    return m.head(total)


def _layers(**more: Any) -> dict[str, Any]:
    return {"inward": nn.Linear(3, 4), "head": nn.Linear(4, 2), **more}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "spikes": lambda: Function(_recurrent, **_layers()),
    "state": lambda: Function(lambda m, x: _Spike.apply(m.inward(x)), inward=nn.Linear(3, 4)),
    "activations": lambda: Function(lambda m, x: m.head(_Rounded.apply(m.inward(x), 0.1)), **_layers()),
    "weight": lambda: Function(
        lambda m, x: nn.functional.linear(x, _Rounded.apply(m.weight, 0.05)), weight=torch.randn(4, 3)
    ),
    "view": lambda: Function(lambda m, x: m.head(torch.tanh(_Reversed.apply(m.inward(x)))), **_layers()),
    "twice": lambda: Function(
        lambda m, x: m.head(_Reversed.apply(_Spike.apply(torch.tanh(m.inward(x))))), **_layers()
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_entry_by_entry_the_structure_is_kept(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().double(), random(5, 3)
    ntk = NTK(model, x)
    assert structure(ntk).graph.general == ()
    parameters = list(model.parameters())
    rows = [
        torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        for one in model(x).flatten()
    ]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    kernel = jacobian @ jacobian.T
    assert float(kernel.trace()) > 0
    torch.testing.assert_close(ntk.to_dense(), kernel, rtol=1e-10, atol=1e-10 * float(kernel.abs().max()))
    assert ntk.trace("exact").value == pytest.approx(float(kernel.trace()), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("_Turned", lambda m, x: m.head(_Turned.apply(m.inward(x)))),
        ("_Scaled", lambda m, x: m.head(_Scaled.apply(m.inward(x), m.scale))),
    ],
)
def test_others_are_refused_by_name(name: str, run: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Function(run, **_layers(scale=torch.randn(4))).double(), random(5, 3)
    assert f"{name} has its own backward pass" in refusal(NTK(model, x))
