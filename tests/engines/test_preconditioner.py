"""D as optimizers have it: what a step moves for a gradient, averages as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK


class Spectral(nn.Module):
    """A layer with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128))
        self.bias = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.fft.fft(x) @ self.weight.T).abs() + self.bias


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "centered rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, lr_decay=0.1, initial_accumulator_value=0.1),
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
}


@pytest.mark.parametrize("make", [_linear, Spectral])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_is_what_gradients_are_multiplied_with(name: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(6, 4, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    kernel = NTK(model, x, scale=optimizer)
    z = torch.randn(kernel.n, dtype=torch.float64)
    found = kernel @ z

    # J D g by finite differences: D g is the step for a gradient so small that averages stay as they are.
    plain = NTK(model, x)
    gradient = plain.vjp(z)
    steps = _steps(optimizer, model, gradient)
    expected = plain.jvp(torch.cat([step.reshape(-1) for step in steps]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))


def _steps(optimizer: torch.optim.Optimizer, model: nn.Module, gradient: Tensor) -> list[Tensor]:
    """What the optimizer's own code makes of a gradient, its averages held, less what it makes of none."""
    small, moves = 1e-6, []
    for factor in (0.0, 1.0):
        twin = copy.deepcopy(model)
        other = type(optimizer)(twin.parameters(), lr=1.0)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        # The first moment decays by itself; taken out, it leaves (1 - β₁) of the gradient, biased by β₁ᵗ.
        for group in other.param_groups:
            if "betas" in group:
                group["betas"] = (0.0, group["betas"][1])
            if "alpha" in group:
                group["alpha"] = 1.0
        before = [p.detach().clone() for p in twin.parameters()]
        place = 0
        for parameter in twin.parameters():
            pairs = parameter.is_complex()
            size = parameter.numel() * (2 if pairs else 1)
            part = gradient[place : place + size] * (factor * small)
            shaped = part.reshape(*parameter.shape, 2) if pairs else part.reshape(parameter.shape)
            parameter.grad = torch.view_as_complex(shaped.contiguous()) if pairs else shaped.clone()
            place += size
        for state in other.state.values():
            if "step" in state:
                state["step"] = state["step"] - 1
        for group in other.param_groups:
            if "betas" in group:
                b2 = group["betas"][1]
                for state in other.state.values():
                    # What one step without a gradient leaves of it.
                    state["exp_avg_sq"] = state["exp_avg_sq"] / b2
                    state["exp_avg"] = torch.zeros_like(state["exp_avg"])
        other.step()
        moves.append(
            [(old - new.detach()) / small for old, new in zip(before, twin.parameters(), strict=True)]
        )
    found = []
    for none, one in zip(*moves, strict=True):
        step = one - none
        found.append(torch.view_as_real(step) if step.is_complex() else step)
    return found
