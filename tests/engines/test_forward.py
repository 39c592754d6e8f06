"""Products Ju: whichever way is taken, it is the transpose of reverse mode, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch import forward
from ntkscope.engines.torch.forward import DoubleBackward, ForwardMode, choose_forward, is_transpose
from ntkscope.engines.torch.state import Parameters, StateFunction
from reference import dense
from zoo import BY_NAME, Case, each


def _state(case: Case) -> StateFunction:
    function: StateFunction = case.ntk().engine.function  # type: ignore[attr-defined]
    return function


@each(["mlp", "gru", "cnn-batch-norm-eval", "self-attention", "tied-embedding", "layer-used-twice"])
@pytest.mark.parametrize("way", [ForwardMode, DoubleBackward])
def test_a_right_way_is_found_right(way: Callable[[StateFunction], forward.Forward], case: Case) -> None:
    function = _state(case)
    assert is_transpose(way(function), function)


def _doubled(name: str) -> Callable[[Parameters], Parameters]:
    return lambda block: {n: 2 * b if n == name else b for n, b in block.items()}


def _row(block: Parameters) -> Parameters:
    """One row of forty of a weight counts for nothing."""
    changed = block["layer.weight"].clone()
    changed[:, 0] = 0
    return {**block, "layer.weight": changed}


BROKEN = {
    "small-bias": _doubled("small"),
    "one-row": _row,
    "a-percent": lambda block: {name: 1.001 * b for name, b in block.items()},
}


class Uneven(nn.Module):
    """A parameter whose gradient is a ten-thousandth of the others'."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.small = nn.Linear(40, 30), nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x))) + 1e-4 * self.small


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
def test_a_wrong_way_is_found_wrong(fault: Callable[[Parameters], Parameters], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Uneven().to(dtype), torch.randn(6, 40, dtype=dtype)
    function: StateFunction = NTK(model, x).engine.function  # type: ignore[attr-defined]

    class Broken(ForwardMode):
        def push(self, block: Parameters) -> Tensor:
            return super().push(fault(block))

    assert is_transpose(ForwardMode(function), function)
    assert not is_transpose(Broken(function), function)


def test_a_way_that_is_not_finite_is_refused() -> None:
    function = _state(BY_NAME["mlp"])

    class Broken(ForwardMode):
        def push(self, block: Parameters) -> Tensor:
            return super().push(block) * torch.nan

    assert not is_transpose(Broken(function), function)


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone() ** 3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone() ** 3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def _cubed(function: type[torch.autograd.Function]) -> nn.Module:
    class Cubed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            cubed: Tensor = function.apply(self.layer(x))  # type: ignore[no-untyped-call]
            return cubed

    torch.manual_seed(0)
    return Cubed().double()


def test_double_backward_serves_where_forward_mode_does_not() -> None:
    model, x = _cubed(_Twice), torch.randn(5, 4, dtype=torch.float64)
    ntk = NTK(model, x)
    assert isinstance(choose_forward(ntk.engine.function), DoubleBackward)  # type: ignore[attr-defined]
    plain = nn.Sequential(model.layer)
    rows = dense(plain, x).jacobian * (3 * plain(x).detach().reshape(-1, 1) ** 2)
    z = torch.randn(15, 3, dtype=torch.float64)
    torch.testing.assert_close(ntk @ z, rows @ (rows.T @ z))


def test_without_either_the_remedy_is_named() -> None:
    ntk = NTK(_cubed(_OnceOnly), torch.randn(5, 4, dtype=torch.float64))
    with pytest.raises(
        NotImplementedError, match=r"are not possible.*'exact', 'per-sample', 'gram' or 'rhutch'"
    ):
        ntk.trace("hutch++", products=9)
    assert ntk.trace(products=5).value > 0
