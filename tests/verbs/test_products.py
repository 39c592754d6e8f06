"""Traces of products of kernels against dense references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ntkscope
from ntkscope import NTK
from spectra import kernel, spectrum
from zoo import Case, each


@each(["mlp", "gru", "batch-norm-training", "one-state"])
def test_exact_over_the_zoo(case: Case) -> None:
    kernels, dense = [case.ntk(seed) for seed in range(3)], [case.dense(seed).kernel for seed in range(3)]
    a, b, c = dense
    found = ntkscope.trace_product(*kernels, kernels[0], method="exact")
    assert found.value == pytest.approx(float((a @ b @ c @ a).trace()), rel=1e-9)
    assert found.stderr == 0
    assert ntkscope.trace_product(*kernels, products=10**6).value == pytest.approx(
        float((a @ b @ c).trace()), rel=1e-9
    )


def test_a_matrix_beside_a_model() -> None:
    import torch

    ntk, matrix = NTK(torch.nn.Linear(3, 2), torch.eye(3)), np.diag(np.arange(6.0))
    expected = float(np.trace(matrix @ ntk.to_dense().numpy()))
    assert ntkscope.trace_product(matrix, ntk, method="exact").value == pytest.approx(expected)


def _found(products: int, seed: int) -> ntkscope.Estimate:
    return ntkscope.trace_product(*_chain(), method="hutch++", products=products, seed=seed)


def _chain() -> list[np.ndarray]:
    return [kernel(spectrum("slow", 60), seed) for seed in (1, 2, 3)]


def test_it_is_unbiased_and_intervals_cover() -> None:
    a, b, c = _chain()
    truth = np.trace(a @ b @ c)
    found = [_found(90, seed) for seed in range(200)]
    values = np.array([estimate.value for estimate in found])
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / np.sqrt(len(values))
    covered = np.mean([low <= truth <= high for low, high in (e.interval() for e in found)])
    assert 0.91 <= covered <= 0.99
    assert {estimate.cost.products for estimate in found} == {90}


def test_to_a_tolerance() -> None:
    a, b, c = _chain()
    found = ntkscope.trace_product(a, b, c, method="hutch++", rtol=0.1)
    assert found.converged
    assert found.value == pytest.approx(np.trace(a @ b @ c), rel=0.3)


def test_bad_requests_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="at least one kernel, found none"):
        ntkscope.trace_product()
    with pytest.raises(ValueError, match="choose one of 'auto', 'exact', 'hutch"):
        ntkscope.trace_product(np.eye(2), method="sketch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same state"):
        ntkscope.trace_product(np.eye(2), np.eye(3))
    with pytest.raises(ValueError, match="at least 6 products"):
        ntkscope.trace_product(np.eye(9), np.eye(9), products=3)


def test_kernels_of_different_inputs_are_not_multiplied() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    one, two = ntkscope.NTK(model, torch.eye(3)), ntkscope.NTK(model, torch.ones(3, 3))
    with pytest.raises(ValueError, match="of different inputs"):
        ntkscope.trace_product(one, two)
    with pytest.raises(ValueError, match=r"has shape \(5, 5\), expected \(6, 6\)"):
        ntkscope.trace_product(np.eye(5), one)
