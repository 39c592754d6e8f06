"""Gradients through the exponential of a skew-symmetric matrix, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.exponential import skew_exponential

SIZES = [(1, 1.0), (2, 1.0), (5, 1.0), (6, 0.1), (7, 3.0), (8, 10.0), (4, 0.0)]


def _skew(size: int, scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(size)
    x = scale * torch.randn(size, size, dtype=torch.float64)
    return (x - x.mT).to(dtype)


def _expected(a: Tensor, gradients: Tensor) -> Tensor:
    leaf = a.clone().requires_grad_()
    rows = [torch.autograd.grad((torch.matrix_exp(leaf) * one).sum(), leaf)[0] for one in gradients]
    return torch.stack(rows)


@pytest.mark.parametrize(("size", "scale"), SIZES)
def test_it_is_torchs_own(size: int, scale: float) -> None:
    a, gradients = _skew(size, scale), torch.randn(3, size, size, dtype=torch.float64)
    found = skew_exponential(a)
    assert found is not None
    torch.testing.assert_close(found.pulled(gradients), _expected(a, gradients), rtol=1e-11, atol=1e-11)


def test_angles_that_are_equal_or_zero() -> None:
    a = torch.zeros(9, 9, dtype=torch.float64)
    for place in (0, 2, 5):
        a[place, place + 1], a[place + 1, place] = 2.0, -2.0
    turn, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))
    a = turn @ a @ turn.mT
    a = (a - a.mT) / 2
    gradients = torch.randn(2, 9, 9, dtype=torch.float64)
    found = skew_exponential(a)
    assert found is not None
    torch.testing.assert_close(found.pulled(gradients), _expected(a, gradients), rtol=1e-11, atol=1e-11)


def test_in_single_precision() -> None:
    a, gradients = _skew(16, 1.0, torch.float32), torch.randn(2, 16, 16)
    found = skew_exponential(a)
    assert found is not None
    expected = _expected(a.double(), gradients.double()).float()
    torch.testing.assert_close(found.pulled(gradients), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [torch.eye(3), torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(2, 2, 2)],
    ids=["symmetric", "oblong", "complex", "stacked"],
)
def test_others_go_another_way(matrix: Tensor) -> None:
    assert skew_exponential(matrix) is None
