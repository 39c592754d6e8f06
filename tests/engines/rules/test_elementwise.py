"""Rules of parameters that meet activations entry by entry, against the dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agreement import agree, each_alone, random
from zoo import Function

Run = Callable[[Any, Tensor], Tensor]

#: The function, the shape of the input, the shape of the parameter.
ELEMENTWISE: dict[str, tuple[Run, tuple[int, ...], tuple[int, ...]]] = {
    "bias": (lambda m, x: torch.tanh(x + m.w), (3, 4), (4,)),
    "bias-sequence": (lambda m, x: torch.tanh(x + m.w), (3, 2, 4), (4,)),
    "bias-first": (lambda m, x: torch.tanh(m.w + x), (3, 2, 4), (2, 1)),
    "bias-scalar": (lambda m, x: torch.tanh(x + m.w), (3, 2, 4), ()),
    "bias-broadcasts-the-input": (lambda m, x: torch.tanh(x[:, :, :1] + m.w), (3, 2, 4), (1, 1, 5)),
    "bias-scaled": (lambda m, x: torch.add(torch.tanh(x), m.w, alpha=3), (3, 4), (4,)),
    "position-table": (lambda m, x: torch.tanh(x + m.w), (3, 5, 4), (1, 5, 4)),
    "difference": (lambda m, x: torch.sub(torch.tanh(x), m.w, alpha=2), (3, 4), (4,)),
    "difference-first": (lambda m, x: torch.tanh(m.w - x), (3, 4), (4,)),
    "difference-turned": (lambda m, x: torch.rsub(m.w, x, alpha=2), (3, 4), (4,)),
    "one-less": (lambda m, x: torch.tanh((1 - m.w) * x), (3, 4), (4,)),
    "gain": (lambda m, x: m.w * torch.tanh(x), (3, 4), (4,)),
    "gain-sequence": (lambda m, x: torch.tanh(x * m.w), (3, 2, 4), (4,)),
    "gain-images": (lambda m, x: torch.tanh(x * m.w), (2, 3, 2, 2), (3, 1, 1)),
    "gain-scalar": (lambda m, x: torch.tanh(x * m.w), (3, 2, 4), (1,)),
    "gain-broadcasts-the-input": (lambda m, x: torch.tanh(x[:, :, :1] * m.w), (3, 2, 4), (2, 5)),
    "gain-of-everything": (lambda m, x: x[:, :1] * m.w, (3, 2), (1, 4)),
    "divided": (lambda m, x: torch.tanh(x / (1 + m.w**2)), (3, 2, 4), (4,)),
    "divided-by": (lambda m, x: m.w / (1 + x**2), (3, 2, 4), (2, 1)),
    "power": (lambda m, x: (x**2 + 1) ** m.w, (3, 2, 4), (4,)),
    "where": (lambda m, x: torch.where(x > 0, x, m.w), (3, 2, 4), (4,)),
    "maximum": (lambda m, x: torch.maximum(x, m.w), (3, 2, 4), (4,)),
    "lerp": (lambda m, x: torch.lerp(x, torch.tanh(x), m.w), (3, 2, 4), (2, 1)),
    "addcmul": (lambda m, x: torch.addcmul(m.w, x, m.w.sin(), value=0.5), (3, 2, 4), (4,)),
    "addcmul-with-itself": (lambda m, x: torch.addcmul(m.w, x, m.w, value=0.5), (3, 2, 4), (4,)),
    "sine": (lambda m, x: x * torch.sin(m.w), (3, 2, 4), (4,)),
    "prelu": (lambda m, x: F.prelu(x, m.w), (3, 4), (4,)),
    "prelu-images": (lambda m, x: F.prelu(x, m.w), (3, 4, 2, 2), (4,)),
    "prelu-shared": (lambda m, x: F.prelu(x, m.w), (3, 4, 2), (1,)),
    "rms-gain": (lambda m, x: m.w * x * (x**2).mean(-1, keepdim=True).add(1e-6).rsqrt(), (3, 2, 4), (4,)),
    "used-twice": (lambda m, x: torch.tanh(x * m.w) + m.w, (3, 2, 4), (4,)),
    "in-place": (lambda m, x: torch.tanh(x).mul_(m.w).add_(m.w), (3, 2, 4), (4,)),
}  # fmt: skip


@pytest.mark.parametrize(("run", "shape", "own"), ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_parameters_entry_by_entry(run: Run, shape: tuple[int, ...], own: tuple[int, ...]) -> None:
    each_alone(lambda: Function(run, w=torch.randn(own)), random(*shape))


def test_layer_scale_and_a_residual_stream() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        for layer, gain in zip(m.layers, m.gains, strict=True):
            x = x + gain * torch.tanh(layer(x))
        return x.mean(1)

    def build() -> nn.Module:
        gains = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(2)])
        return Function(run, layers=nn.ModuleList([nn.Linear(4, 4) for _ in range(2)]), gains=gains)

    each_alone(build, random(3, 5, 4))


def test_a_comparison_has_no_gradient_and_takes_the_general_way() -> None:
    model = Function(lambda m, x: torch.where(x > m.w, x * m.w, x), w=torch.randn(4)).double()
    ntk = agree(model, random(3, 4), {"w"})
    assert ntk.engine.samples().jacobian.graph.why_general == {"w": "used by gt, which has no rule"}
