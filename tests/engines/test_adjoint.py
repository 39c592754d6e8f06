"""The dot-product test: what is no transpose fails it, in every dtype; what rounds only passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch import adjoint
from ntkscope.engines.torch.adjoint import is_transpose
from ntkscope.engines.torch.forward import DoubleBackward, ForwardMode, choose_forward
from ntkscope.engines.torch.state import StateFunction
from reference import dense
from zoo import Case, each

HALF = [torch.bfloat16, torch.float16]
DTYPES = [*HALF, torch.float32, torch.float64]


def _function(model: nn.Module, inputs: Any) -> StateFunction:
    function: StateFunction = NTK(model, inputs).engine.function  # type: ignore[attr-defined]
    return function


@pytest.fixture(params=["twin in float64", "no twin"])
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the model is small enough to be run in float64."""
    if request.param == "no twin":
        monkeypatch.setattr(adjoint, "DEFAULT_BUDGET", 0)


class Padded(nn.Module):
    """Forward mode of torch knows nothing of the padding; reverse mode leaves its row out."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(words, 8, padding_idx=0), nn.Linear(8, 2)
        nn.init.normal_(self.words.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(tokens)).sum(1))


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [20, 5000])
@pytest.mark.parametrize("padded", [1, 20])
def test_a_padded_row_is_found(dtype: torch.dtype, words: int, padded: int) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        tokens = torch.randint(1, words, (8, 6))
        tokens.view(-1)[:padded] = 0
        function = _function(Padded(words).to(dtype), tokens)
        assert not is_transpose(ForwardMode(function), function)
        tokens[tokens == 0] = 1
        function = _function(function.module, tokens)
        assert is_transpose(ForwardMode(function), function)


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].cos()


class _NotLinear(_Sine):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].cos() + 0.5 * tangent**3


class _Noisy(_Sine):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].cos() * (1 + 0.3 * torch.randn_like(tangent))


class _Absolute(_Sine):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.abs() * ctx.saved_tensors[0].cos()


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function.apply(self.first(x)))  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [_NotLinear, _Noisy, _Absolute])
def test_a_way_that_is_not_linear_is_no_rounding(
    wrong: type[torch.autograd.Function], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=dtype)
    function = _function(Custom(wrong).to(dtype), x)
    if wrong is _Noisy and dtype in HALF and adjoint.DEFAULT_BUDGET == 0:
        return  # Noise of 30% and rounding of half precision cannot be told apart without float64.
    assert not is_transpose(ForwardMode(function), function)
    assert isinstance(choose_forward(function), DoubleBackward)
    right = _function(Custom(_Sine).to(dtype), x)
    assert is_transpose(ForwardMode(right), right)


@pytest.mark.usefixtures("twin")
@each(["mlp", "gru", "norm-used-twice", "instance-norm", "self-attention", "tied-embedding"])
@pytest.mark.parametrize("way", [ForwardMode, DoubleBackward])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_passes(
    dtype: torch.dtype, way: Callable[[StateFunction], adjoint.Forward], case: Case
) -> None:
    function: StateFunction = case.ntk(dtype=dtype).engine.function  # type: ignore[attr-defined]
    assert is_transpose(way(function), function)


class Region(nn.Module):
    """A part runs in less precision than the rest."""

    def __init__(self, inside: torch.dtype) -> None:
        super().__init__()
        self.first, self.last, self.inside = nn.Linear(3, 8), nn.Linear(8, 1), inside

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (p.to(self.inside) for p in (self.first.weight, self.first.bias))
        hidden = torch.tanh(nn.functional.linear(x.to(self.inside), weight, bias))
        return self.last(hidden.to(x.dtype))


@pytest.mark.parametrize("way", [ForwardMode, DoubleBackward])
@pytest.mark.parametrize("inside", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_region_of_less_precision_is_no_fault(
    dtype: torch.dtype, inside: torch.dtype, way: Callable[[StateFunction], adjoint.Forward]
) -> None:
    torch.manual_seed(0)
    function = _function(Region(inside).to(dtype), torch.randn(20, 3, dtype=dtype))
    assert is_transpose(way(function), function)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_ends_of_the_range_do_not_disturb(scale: float) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return scale * torch.tanh(self.layer(x))

    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(4, 3, dtype=torch.float64)
    function = _function(model, x)
    assert is_transpose(ForwardMode(function), function)
    u = torch.randn(8, 2, dtype=torch.float64)
    torch.testing.assert_close(NTK(model, x).jvp(u) / scale, dense(model, x).jacobian / scale @ u)
