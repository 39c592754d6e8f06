"""``torch.inference_mode()`` and ``torch.no_grad()`` around a measurement change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK, measure_all
from truth.reference import alignment, dense
from truth.verdict import assert_right, assert_right_or_refused, unless_refused


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(4, 4, dtype=torch.double)


@pytest.mark.parametrize("method", ["exact", "per-sample", "rhutch", "fhutch", "sketch"])
def test_measured_within(method: str, x: Tensor) -> None:
    """The kernel was made outside."""
    model = _model()
    ntk, right = NTK(model, x), dense(model, lambda: model(x)).trace
    products = None if method == "exact" else 30
    with torch.inference_mode():
        assert_right_or_refused(lambda: ntk.trace(method=method, products=products), right)


def test_made_within_and_measured_outside(x: Tensor) -> None:
    model = _model()
    right = dense(model, lambda: model(x))
    with torch.inference_mode():
        ntk = unless_refused(lambda: NTK(model, x))
    if ntk is None:
        return
    assert_right(ntk.trace(method="exact"), right.trace)
    assert_right(ntk.frobenius_norm(), right.frobenius_norm)


def test_inputs_and_model_made_within(x: Tensor) -> None:
    model = _model()
    right = dense(model, lambda: model(x)).trace
    with torch.inference_mode():
        born, inputs = _model(), x * 1.0
    assert_right_or_refused(lambda: NTK(model, inputs).trace(method="exact"), right)
    assert_right_or_refused(lambda: NTK(born, x).trace(method="exact"), right)
    assert_right_or_refused(
        lambda: NTK(born, inputs).frobenius_norm(), dense(model, lambda: model(x)).frobenius_norm
    )


def test_several_kernels_within(x: Tensor) -> None:
    one, two = _model(), _model(1)
    right = alignment(dense(one, lambda: one(x)), dense(two, lambda: two(x)))
    trace = dense(two, lambda: two(x)).trace
    with torch.inference_mode():
        assert_right_or_refused(lambda: measure_all([NTK(one, x), NTK(two, x)])[0].alignment[0], right)
        assert_right_or_refused(lambda: NTK(one, x).at(two).trace(method="exact"), trace)


def test_products_within(x: Tensor) -> None:
    model = _model()
    right = dense(model, lambda: model(x)).jacobian
    ntk, z = NTK(model, x), torch.randn(12, dtype=torch.double)
    with torch.inference_mode():
        found = [ntk.vjp(z), ntk @ z, ntk.to_dense()]
    for tensor, expected in zip(found, [right.T @ z, right @ (right.T @ z), right @ right.T], strict=True):
        torch.testing.assert_close(tensor.clone(), expected, rtol=1e-9, atol=1e-9)


def test_no_grad_around_it(x: Tensor) -> None:
    model = _model()
    right = dense(model, lambda: model(x))
    with torch.no_grad():
        ntk = NTK(model, x)
        assert_right(ntk.trace(method="exact"), right.trace)
        assert_right(ntk.frobenius_norm(), right.frobenius_norm)
