"""Error bars that hold where probes see little: few coordinates, budgets near n, twins, tiny ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ntkscope import NTK, Estimate, estimators

Array = NDArray[np.float64]


def _misses(estimates: Iterator[Estimate], right: float) -> int:
    """How many say that they are sure, and lie far off."""
    missed = 0
    for estimate in estimates:
        if estimate.stderr is None:
            continue
        low, high = estimate.interval(0.9999)
        slack = 1e-8 * abs(right)
        missed += not low - slack <= right <= high + slack
    return missed


def _few(n: int, values: list[float]) -> Array:
    kernel = np.zeros((n, n))
    for number, value in enumerate(values):
        kernel[7 * number + 1, 7 * number + 1] = value
    return kernel


@pytest.mark.parametrize("method", ["sketch", "nystrom", "hutch++"])
@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [4.0, 2.0, 1.0, 1.0]])
def test_a_matrix_on_few_coordinates(method: str, values: list[float]) -> None:
    kernel = _few(200, values)
    right = float(np.linalg.norm(kernel))
    found = (estimators.frobenius_norm(kernel, method, products=12, seed=seed) for seed in range(20))
    assert _misses(found, right) <= 1


@pytest.mark.parametrize("metric", ["trace", "effective_rank"])
def test_few_coordinates_to_a_tolerance(metric: str) -> None:
    kernel = _few(400, [1.0, 1.0, 1.0])
    measure: Callable[..., Estimate] = getattr(estimators, metric)
    found = (measure(kernel, "sketch", seed=seed, rtol=0.01, max_products=40) for seed in range(20))
    assert _misses(found, 3.0) <= 1


def test_few_active_samples() -> None:
    """Two samples of a batch meet the layer's inputs at all."""
    x = torch.zeros(600, 10, dtype=torch.double)
    x[3, 0] = x[100, 1] = x[200, 2] = x[300, 3] = 1
    ntk = NTK(nn.Linear(10, 1, bias=False).double(), x, batch_dim=None)
    found = (ntk.frobenius_norm("sketch", products=10, seed=seed) for seed in range(15))
    assert _misses(found, 2.0) <= 1


def _conditioned(n: int, seed: int = 1) -> Array:
    rows = np.random.default_rng(seed).standard_normal((n, 2 * n))
    return rows @ rows.T


@pytest.mark.parametrize("n", [5, 7, 12])
@pytest.mark.parametrize("method", ["nystrom", "sketch", "hutch++"])
@pytest.mark.parametrize("metric", ["frobenius_norm", "trace"])
def test_budgets_near_n(n: int, method: str, metric: str) -> None:
    kernel = _conditioned(n)
    right = float(np.trace(kernel)) if metric == "trace" else float(np.linalg.norm(kernel))
    measure: Callable[..., Estimate] = getattr(estimators, metric)
    least = {"nystrom": 2, "sketch": 4, "hutch++": 6}[method]
    found = (
        measure(kernel, method, products=products, seed=seed)
        for products in {max(least, n - 1), max(least, n // 2)}
        for seed in range(12)
    )
    assert _misses(found, right) <= 1


@pytest.mark.parametrize("n", [6, 10])
def test_alignments_near_n(n: int) -> None:
    """An alignment never lies above 1, and is not sure of what it is not."""
    first, second = _conditioned(n), _conditioned(n, 2)
    right = float(np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second))
    found = [
        estimators.alignment(first, second, "nystrom", products=2 * (n - 1), seed=seed) for seed in range(20)
    ]
    assert all(estimate.value <= 1 + 1e-6 for estimate in found if estimate.stderr is not None)
    assert _misses(iter(found), right) <= 1


def test_the_default_trace_of_a_small_matrix() -> None:
    kernel = _conditioned(6)
    found = (estimators.trace(kernel, seed=seed, rtol=0.2) for seed in range(30))
    assert _misses(found, float(np.trace(kernel))) <= 1


@pytest.mark.parametrize("method", ["sketch", "nystrom"])
def test_one_kernel_against_itself(method: str) -> None:
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    kernel = (basis * np.arange(1, 61) ** -1.5) @ basis.T
    found = (estimators.alignment(kernel, kernel.copy(), method, products=16, seed=s) for s in range(20))
    assert _misses(found, 1.0) <= 1


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("method", ["sketch", "nystrom"])
def test_at_the_edge_of_the_rank(method: str, rank: int) -> None:
    rng = np.random.default_rng(rank)
    rows = rng.standard_normal((40, rank))
    kernel = rows @ rows.T
    right = float(np.linalg.norm(kernel))
    found = (
        estimators.frobenius_norm(kernel, method, products=products, seed=seed)
        for products in (2 * rank, 2 * rank - 1 if method == "sketch" else rank + 1)
        for seed in range(15)
    )
    assert _misses(found, right) <= 1


def test_effective_rank_of_one_parameter() -> None:
    """One parameter: a kernel of rank one, whose effective rank is 1."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    ntk = NTK(model, torch.randn(30, 1, dtype=torch.double))
    found = (ntk.effective_rank("gram", products=6, seed=seed) for seed in range(15))
    assert _misses(found, 1.0) <= 1
