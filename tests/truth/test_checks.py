"""Structure that is nearly right: small parts that are coupled or wrong are found, whatever the dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK, Rule, add_rule
from ntkscope.engines.torch.gradients.factors import Direct
from ntkscope.engines.torch.rules import base
from truth.reference import dense
from truth.verdict import assert_right


class SubtractsTheMean(nn.Module):
    """A tenth of the batch's mean is taken off: coupling of the size of bfloat16's rounding."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.first, self.last, self.share = nn.Linear(8, 16), nn.Linear(16, 2), share

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.last(hidden - self.share * hidden.mean(0, keepdim=True))


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_coupling_below_the_dtype(dtype: torch.dtype, share: float) -> None:
    torch.manual_seed(0)
    model, x = SubtractsTheMean(share).to(dtype), torch.randn(32, 8).to(dtype)
    estimate = NTK(model, x).trace(method="exact")
    wide, inputs = model.double(), x.double()
    assert_right(estimate, dense(wide, lambda: wide(inputs)).trace, rtol=0.015 if share > 0.05 else 0.003)


class CoupledGradient(nn.Module):
    """Values of every sample on its own; gradients with a little of the batch's mean."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.first, self.last, self.share = nn.Linear(6, 8), nn.Linear(8, 2), share

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.first(x))
        mean = hidden.mean(0, keepdim=True)
        return self.last(hidden + self.share * (mean - mean.detach()))


@pytest.mark.parametrize(
    ("dtype", "share", "rtol"), [(torch.float32, 3e-3, 2e-5), (torch.float64, 3e-6, 1e-8)]
)
def test_coupling_of_gradients_alone(dtype: torch.dtype, share: float, rtol: float) -> None:
    torch.manual_seed(0)
    model, x = CoupledGradient(share).to(dtype), torch.randn(60, 6).to(dtype)
    right = dense(model, lambda: model(x))
    estimate = NTK(model, x).trace(method="exact")
    assert_right(estimate, right.trace, rtol)


class SmallGate(nn.Module):
    """One small parameter, coupled, beside large ones that are not."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.body, self.gate, self.size = nn.Linear(6, 3), nn.Parameter(torch.zeros(1)), size

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return hidden + self.size * self.gate * torch.sigmoid(hidden.mean(0, keepdim=True))


@pytest.mark.parametrize(("dtype", "size", "rtol"), [(torch.float64, 6e-3, 1e-8), (torch.float32, 0.1, 2e-5)])
def test_a_small_parameter_that_is_coupled(dtype: torch.dtype, size: float, rtol: float) -> None:
    torch.manual_seed(0)
    model, x = SmallGate(size).to(dtype), torch.randn(40, 6).to(dtype)
    right = dense(model, lambda: model(x))
    gate = right.jacobian[:, 0]
    assert float(gate @ gate) < 1e-3 * right.trace
    estimate = NTK(model, x).trace(method="exact")
    assert_right(estimate, right.trace, rtol)


@torch.library.custom_op("ntkscope_tests::shrink", mutates_args=())
def _shrink(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, scale = ctx.saved_tensors
    return grad * scale, (grad * x).sum(0)


def _under_vmap(info: Any, in_dims: Any, x: Tensor, scale: Tensor) -> tuple[Tensor, int]:
    x = x if in_dims[0] is None else x.movedim(in_dims[0], 0)
    if in_dims[1] is not None:
        scale = scale.movedim(in_dims[1], 0).unsqueeze(1)
    return x * scale, 0


_shrink.register_autograd(_backward, setup_context=_save)
_shrink.register_fake(lambda x, scale: torch.empty_like(x))
_shrink.register_vmap(_under_vmap)


class Shrunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = nn.Linear(8, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return _shrink(self.body(x), self.scale)


@pytest.fixture
def rule_wrong_tenfold() -> Iterator[None]:
    operation = torch.ops.ntkscope_tests.shrink.default

    def factor(arguments: Any, delta: Tensor, name: str) -> Direct:
        return Direct(10 * (delta * arguments["x"]).sum(2))

    add_rule(operation, Rule(("scale",), ("x",), factor))
    yield
    base._RULES.pop(operation)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 2e-2), (torch.float64, 5e-4)])
def test_a_rule_that_is_wrong_for_a_small_parameter(
    rule_wrong_tenfold: None, dtype: torch.dtype, size: float
) -> None:
    torch.manual_seed(0)
    model, x = Shrunk().to(dtype), torch.randn(32, 8).to(dtype)
    with torch.no_grad():
        model.body.weight.mul_(size)
        model.body.bias.mul_(size)
    right = dense(model, lambda: model(x))
    estimate = NTK(model, x).trace(method="exact")
    assert_right(estimate, right.trace, 1e-5 if dtype == torch.float32 else 1e-9)
