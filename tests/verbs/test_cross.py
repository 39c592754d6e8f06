"""Kernels between two states against dense Jacobians, and regression with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ntkscope
from ntkscope import NTK
from reference import dense
from zoo import Case, each


def _pair(n: int = 12, m: int = 7) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    return model, torch.randn(n, 4, dtype=torch.float64), torch.randn(m, 4, dtype=torch.float64)


def _dense(model: nn.Module, one: Tensor, two: Tensor) -> np.ndarray:
    return (dense(model, one).jacobian @ dense(model, two).jacobian.T).numpy()


def test_against_dense_jacobians() -> None:
    model, one, two = _pair()
    expected, kernel = _dense(model, one, two), NTK(model, one).cross(two)
    assert kernel.shape == expected.shape
    np.testing.assert_allclose(kernel.to_dense(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kernel.T.to_dense(), expected.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kernel.block(range(2, 5), range(3, 4)), expected[2:5, 3:4], rtol=1e-9)
    v = np.random.default_rng(0).normal(size=(14, 3))
    np.testing.assert_allclose(kernel @ v, expected @ v, rtol=1e-9)
    np.testing.assert_allclose(kernel.T @ (kernel @ v), expected.T @ (expected @ v), rtol=1e-9)
    found = kernel.frobenius_norm("exact")
    assert found.value == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert found.stderr == 0


def test_small_budgets_go_by_panels() -> None:
    model, one, two = _pair()
    kernel = NTK(model, one, memory=20_000).cross(two)
    np.testing.assert_allclose(kernel.to_dense(), _dense(model, one, two), rtol=1e-9, atol=1e-12)


@each(["mlp", "gru", "tied-embedding", "batch-norm-training", "frozen"])
def test_two_checkpoints_of_the_zoo(case: Case) -> None:
    first, second = case.shared(), case.ntk(1)
    expected = case.dense().jacobian @ case.dense(1).jacobian.T
    kernel = first.cross(second)
    np.testing.assert_allclose(
        kernel.to_dense(), expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max())
    )
    # Square, and not symmetric.
    assert kernel.shape[0] == kernel.shape[1]
    assert not np.allclose(kernel.to_dense(), kernel.T.to_dense())


def test_other_inputs_are_run_at_the_kernels_own_parameters() -> None:
    model, one, two = _pair()
    expected, ntk = _dense(model, one, two), NTK(model, one)
    with torch.no_grad():
        model[0].weight.mul_(5)
    np.testing.assert_allclose(ntk.cross(two).to_dense(), expected, rtol=1e-9, atol=1e-12)


def test_norms_are_unbiased_in_the_square_and_intervals_cover() -> None:
    model, one, two = _pair(20, 30)
    kernel, truth = NTK(model, one).cross(two), np.linalg.norm(_dense(model, one, two))
    found = [kernel.frobenius_norm("hutch++", products=24, seed=seed) for seed in range(200)]
    squares = np.array([estimate.value**2 for estimate in found])
    assert abs(squares.mean() - truth**2) < 4 * squares.std(ddof=1) / np.sqrt(len(squares))
    covered = np.mean([low <= truth <= high for low, high in (e.interval() for e in found)])
    assert 0.91 <= covered <= 0.99
    assert {estimate.cost.products for estimate in found} == {24}
    assert kernel.frobenius_norm(rtol=0.05).value == pytest.approx(truth, rel=0.15)


@pytest.mark.parametrize("method", ["exact", "cg"])
@pytest.mark.parametrize("from_state", [True, False])
def test_regression(method: str, from_state: bool) -> None:
    model, one, two = _pair()
    ntk, y = NTK(model, one), torch.randn(12, 2, dtype=torch.float64)
    fit = ntk.regression(y, 0.1, method, from_state=from_state, rtol=1e-12)  # type: ignore[arg-type]
    kernel, cross = dense(model, one).kernel, torch.from_numpy(_dense(model, two, one))
    start = (model(one) if from_state else torch.zeros(12, 2).double()).detach()
    alpha = torch.linalg.solve(kernel + 0.1 * torch.eye(24).double(), (y - start).reshape(-1))
    expected = (cross @ alpha).reshape(7, 2) + (model(two).detach() if from_state else 0)
    torch.testing.assert_close(fit.predict(two), expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(fit.predict(NTK(model, two)), expected, rtol=1e-8, atol=1e-9)
    assert fit.converged
    assert fit.residual < 1e-9
    assert fit.method == method


def test_a_fit_that_ends_early_says_so() -> None:
    model, one, _ = _pair()
    fit = NTK(model, one).regression(torch.ones(12, 2), 1e-3, "cg", rtol=1e-10, max_products=2)
    assert not fit.converged
    assert fit.residual > 1e-6


def test_bad_requests_name_the_remedy() -> None:
    model, one, two = _pair()
    ntk = NTK(model, one)
    with pytest.raises(ValueError, match="parameters have other shapes"):
        ntk.cross(NTK(nn.Linear(4, 2).double(), two))
    with pytest.raises(ValueError, match="bring both models to one dtype"):
        ntk.cross(NTK(_pair()[0].float(), two.float()))
    with pytest.raises(ValueError, match="expected a range of step 1 within 24"):
        ntk.cross(two).block(range(30), range(1))
    with pytest.raises(ValueError, match="choose one of 'auto', 'exact', 'hutch"):
        ntk.cross(two).frobenius_norm("sketch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shift λ must be positive"):
        ntk.regression(torch.ones(12, 2), 0.0)
    with pytest.raises(ValueError, match="choose one of 'auto', 'exact', 'cg'"):
        ntk.regression(torch.ones(12, 2), 1.0, "lu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="make an NTK without loss="):
        NTK(model, one, loss="mse").cross(two)
    assert "n₁=24, n₂=14" in repr(ntk.cross(two))
    assert isinstance(ntk.cross(two), ntkscope.CrossKernel)
