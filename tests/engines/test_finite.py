"""Products at the ends of a dtype's range: right, or an error; never infinite, NaN or zero by accident."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.finite import check_not_vanished, check_squares, checked


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.layer(x))


def _ntk(scale: float, dtype: torch.dtype = torch.float32, samples: int = 40) -> NTK:
    torch.manual_seed(0)
    return NTK(Scaled(scale).to(dtype), torch.randn(samples, 3).to(dtype), batch_dim=None)


@pytest.mark.parametrize("samples", [2, 40], ids=["n-below-p", "p-below-n"])
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e25])
def test_exact_traces_keep_their_digits(scale: float, samples: int) -> None:
    right = _ntk(1.0, torch.float64, samples).trace(method="exact").value
    found = _ntk(scale, samples=samples).trace(method="exact").value
    assert found / scale / scale == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("method", ["hutch++", "sketch", "nystrom"])
@pytest.mark.parametrize(("scale", "words"), [(1e25, "not finite"), (1e-30, "vanish")])
def test_kernel_products_out_of_range_name_the_remedy(scale: float, words: str, method: str) -> None:
    with pytest.raises(ValueError, match=f"{words}: they leave the range of float32 .*; use what adds up"):
        _ntk(scale).trace(method=method, products=7)


def test_a_product_of_products_out_of_range() -> None:
    """K is within float32, K² is not."""
    for scale, words in ((1e15, "not finite"), (1e-15, "vanish")):
        with pytest.raises(ValueError, match=words):
            _ntk(scale).frobenius_norm(method="hutch++", products=7)


@pytest.mark.parametrize("samples", [2, 40])
@pytest.mark.parametrize("method", ["exact", "fhutch", "rhutch", "hutch++", "gram"])
def test_squares_beyond_float64(method: str, samples: int) -> None:
    products = None if method == "exact" else 6
    with pytest.raises(ValueError, match=r"leave the range of float64 .*; "):
        _ntk(1e200, torch.float64, samples).trace(method=method, products=products)


def test_vectors_that_are_not_finite_are_named() -> None:
    ntk = _ntk(1.0)
    for bad in (math.nan, math.inf):
        v = torch.ones(ntk.n)
        v[3] = bad
        with pytest.raises(ValueError, match="the vectors have entries that are not finite"):
            ntk @ v


def test_what_is_zero_may_vanish() -> None:
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    check_not_vanished(zero, [zero])
    check_not_vanished(zero[:0], [one[:0]])
    check_not_vanished(1e-35 * one, [one])
    with pytest.raises(ValueError, match="vanish"):
        check_not_vanished(1e-44 * one, [zero, 1e-22 * one])


def test_checks_pass_on_what_is_finite() -> None:
    one = torch.ones(2)
    assert checked(one, one) is one
    with pytest.raises(ValueError, match="are not finite: they leave the range of float16"):
        checked(one * math.inf, one.half())
    squares = np.ones(2)
    assert check_squares(squares) is squares
