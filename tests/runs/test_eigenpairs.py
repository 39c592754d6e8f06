"""Largest eigenpairs by block Krylov iteration, against the spectra that the kernels were made of."""

from __future__ import annotations

import numpy as np
import pytest

from ntkscope.operators.composed import as_map
from ntkscope.runs.eigenpairs import krylov_eigenpairs
from spectra import kernel, low_rank, spectrum

LIMITS = {"most": 3000, "columns": 200}


@pytest.mark.parametrize("name", ["flat", "polynomial", "slow", "fast", "step", "deep step"])
@pytest.mark.parametrize("columns", [200, 40])
def test_values_are_within_their_errors(name, columns):
    values = spectrum(name, 300)
    matrix = kernel(values)
    found = krylov_eigenpairs(as_map(matrix), 10, rtol=1e-6, most=3000, columns=columns)
    assert found.converged
    off = np.abs(found.values - values[:10])
    assert np.all(off <= found.errors + 1e-14)
    assert np.all(found.errors <= 1e-6 * found.values + 1e-14)
    residuals = np.linalg.norm(matrix @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-13)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(10), atol=1e-12)


def test_an_eigenvalue_that_occurs_often_is_found_as_often():
    values = np.repeat([3.0, 2.0, 1.0], [4, 5, 91])
    found = krylov_eigenpairs(as_map(kernel(values)), 9, rtol=1e-8, **LIMITS)
    np.testing.assert_allclose(found.values, values[:9], rtol=1e-12)


def test_a_kernel_of_small_rank_has_few():
    matrix = low_rank(60, 4)
    found = krylov_eigenpairs(as_map(matrix), 10, rtol=1e-6, **LIMITS)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(matrix)[::-1][:4], rtol=1e-12)
    assert found.vectors.shape == (60, 4)
    assert found.converged


def test_a_zero_kernel_has_none():
    found = krylov_eigenpairs(as_map(np.zeros((5, 5))), 3, rtol=1e-6, **LIMITS)
    assert len(found) == 0
    assert found.vectors.shape == (5, 0)


def test_too_few_products_say_so():
    operator = as_map(kernel(spectrum("flat", 300)))
    found = krylov_eigenpairs(operator, 5, rtol=1e-10, most=30, columns=200)
    assert not found.converged
    assert found.errors.max() > 1e-3
    assert operator.ledgers[0].products == found.cost.products <= 30


def test_single_precision_stops_at_its_rounding():
    values = spectrum("slow", 200)
    found = krylov_eigenpairs(as_map(kernel(values).astype(np.float32)), 5, rtol=1e-12, **LIMITS)
    assert found.converged
    np.testing.assert_allclose(found.values, values[:5], rtol=2e-6)
    assert found.errors.max() < 2e-6
