"""Stochastic Lanczos quadrature against known spectra: unbiased, bracketed, with honest error bars."""

from __future__ import annotations

import numpy as np
import pytest

from ntkscope.operators.composed import as_map
from ntkscope.operators.probes import sphere_probes
from ntkscope.runs.lanczos import DeflatedLanczosRun, LanczosRun, lanczos_quadrature
from ntkscope.runs.spectrum import Spectrum
from spectra import kernel, low_rank, spectrum

N = 80


def _naive(matrix, start, steps):
    """The textbook's recurrence for one vector, with full orthogonalisation."""
    q, alphas, betas = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        w = matrix @ q[-1]
        alphas.append(q[-1] @ w)
        for _ in range(2):
            for v in q:
                w = w - v * (v @ w)
        betas.append(np.linalg.norm(w))
        q.append(w / betas[-1])
    return np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)


def test_rules_are_those_of_the_textbook():
    matrix = kernel(spectrum("slow", N))
    rules = lanczos_quadrature(as_map(matrix), range(2, 5), 6, seed=7)
    for row, column in enumerate(sphere_probes(N, 2, 5, seed=7, stream=50).T):
        nodes, vectors = np.linalg.eigh(_naive(matrix, column, 6))
        np.testing.assert_allclose(rules.nodes[row], nodes, rtol=1e-9)
        np.testing.assert_allclose(rules.weights[row], vectors[0] ** 2, rtol=1e-8)


def test_rules_are_exact_for_polynomials_and_on_either_side_of_logarithms():
    matrix = kernel(spectrum("slow", N))
    probes = sphere_probes(N, 0, 3, seed=0, stream=50) / np.sqrt(N)
    rules = lanczos_quadrature(as_map(matrix), range(3), 4, seed=0)
    for power in range(1, 8):
        exact = np.sum(probes * (np.linalg.matrix_power(matrix, power) @ probes), axis=0)
        for found in rules.both(lambda x, power=power: x**power):
            np.testing.assert_allclose(found, exact, rtol=1e-10)
    values, vectors = np.linalg.eigh(matrix)
    for function in (lambda x: np.log(x + 1e-2), lambda x: -1 / (x + 1e-2)):
        exact = np.sum((vectors.T @ probes) ** 2 * function(values)[:, None], axis=0)
        gauss, radau = rules.both(function)
        assert np.all(radau <= exact)
        assert np.all(exact <= gauss)


def test_a_space_that_is_exhausted_is_exact():
    matrix = low_rank(40, 3)
    run = LanczosRun(as_map(matrix), 10)
    run.grow(60)
    rules = run.result().quadrature
    gauss, radau = rules.both(lambda x: np.log(x + 1.0))
    np.testing.assert_allclose(gauss, radau, rtol=1e-10)


def test_counts_of_a_kernel_with_zeros():
    matrix = low_rank(40, 3)
    run = LanczosRun(as_map(matrix), 10)
    run.grow(100)
    middle, low, high = run.result().count_above([1e-6, 1.0])
    assert np.all((low <= 3) & (high >= 3))
    assert np.all((low <= middle) & (middle <= high))


def test_a_zero_kernel():
    run = LanczosRun(as_map(np.zeros((6, 6))), 3)
    run.grow(30)
    assert run.result().log_det(2.0).value == pytest.approx(6 * np.log(2.0))
    assert np.isnan(run.result().entropy().value)


def test_probes_do_not_depend_on_steps_of_growth():
    operator = as_map(kernel(spectrum("slow", N)))
    one, many = (DeflatedLanczosRun(operator, 8, pairs=4, seed=1) for _ in range(2))
    one.grow(300)
    for products in (100, 170, 300):
        many.grow(products)
    np.testing.assert_allclose(one.result().quadrature.nodes, many.result().quadrature.nodes, rtol=1e-9)


def _statistics(names, runs=200):
    """(z of the mean, coverage of 95% intervals) of every number over seeds."""
    values = np.concatenate([spectrum("slow", N - 20), np.zeros(20)])
    matrix, exact = as_map(kernel(values)), Spectrum.of_eigenvalues(values)
    found = {name: [] for name in names}
    for seed in range(runs):
        run = DeflatedLanczosRun(matrix, 8, pairs=5, seed=seed)
        run.grow(150)
        spectrum_ = run.result()
        for name, form in names.items():
            found[name].append(form(spectrum_))
    answer = {}
    for name, form in names.items():
        truth = form(exact).value
        means = np.array([estimate.value for estimate in found[name]])
        covered = [low <= truth <= high for low, high in (e.interval() for e in found[name])]
        spread = means.std(ddof=1) / np.sqrt(runs)
        answer[name] = (float((means.mean() - truth) / spread), float(np.mean(covered)))
    return answer


NUMBERS = {
    "log det": lambda s: s.log_det(0.1),
    "trace": lambda s: s.moment(1),
    "third moment": lambda s: s.moment(3),
    "entropy": lambda s: s.entropy(),
}


def test_numbers_are_unbiased_and_intervals_cover():
    for name, (z, coverage) in _statistics(NUMBERS).items():
        assert abs(z) < 4, (name, z)
        assert 0.91 <= coverage <= 0.99, (name, coverage)


def test_the_test_sees_an_estimator_that_is_broken(monkeypatch):
    # As if there were more eigenvalues than there are.
    monkeypatch.setattr(Spectrum, "_unknown", property(lambda self: self.n + 20 * self.probes))
    assert max(abs(z) for z, _ in _statistics({"trace": NUMBERS["trace"]}, 40).values()) > 4
