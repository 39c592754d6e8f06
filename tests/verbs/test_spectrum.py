"""Eigenvalues of models' kernels against dense float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn

from ntkscope import NTK
from ntkscope.operators.composed import as_map
from ntkscope.ways import spectrum as ways
from zoo import Case, each

# Some of every kind: p < n, n = 1, coupled samples, no layer rule, and those of little rank.
SOME = each(
    [
        *("mlp", "gru", "conv2d-1x1", "transformer", "tied-embedding", "embedding-padding", "frozen"),
        *("layer-used-twice", "batch-norm-training", "scalar-state", "one-state", "class-token", "bilinear"),
    ]
)


def _values(case: Case) -> np.ndarray:
    return np.linalg.eigvalsh(case.dense().kernel.numpy())[::-1]


@SOME
def test_exact_over_the_zoo(case: Case) -> None:
    expected, ntk = np.maximum(_values(case), 0), case.shared()
    scale = expected[0]
    found = ntk.spectrum("exact")
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=0, atol=1e-9 * scale + 1e-300)
    pairs = ntk.eigenpairs(min(3, ntk.n), "exact")
    np.testing.assert_allclose(pairs.values, expected[: len(pairs)], rtol=1e-9)
    if scale:
        assert ntk.operator_norm("exact").value == pytest.approx(scale, rel=1e-9)
        stable = float((expected**2).sum() / scale**2)
        assert ntk.stable_rank(products=10**6).value == pytest.approx(stable, rel=1e-8)


@SOME
def test_krylov_over_the_zoo(case: Case) -> None:
    ntk, kernel = case.shared(), case.dense().kernel
    expected = np.maximum(_values(case), 0)
    try:
        ntk.engine.check_forward()
    except NotImplementedError:
        pytest.skip("no forward mode")
    count = min(4, ntk.n)
    found = ntk.eigenpairs(count, "krylov", rtol=1e-10)
    floor = 1e-12 * expected[0] + 1e-300
    np.testing.assert_allclose(found.values, expected[: len(found)], rtol=1e-9, atol=floor)
    assert np.all(expected[len(found) : count] <= 1e-9 * expected[0] + 1e-300)
    off = kernel @ found.vectors - found.vectors * torch.from_numpy(found.values)
    assert np.all(off.norm(dim=0).numpy() <= found.residuals * (1 + 1e-6) + 1e-11 * expected[0])


def _model(p_less_than_n: bool) -> NTK:
    torch.manual_seed(0)
    inputs = torch.randn(60, 5, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 6 if p_less_than_n else 40), nn.Tanh())
    model.append(nn.Linear(6 if p_less_than_n else 40, 4))
    return NTK(model.double(), inputs)


@pytest.mark.parametrize("p_less_than_n", [True, False])
def test_density_and_sums(p_less_than_n: bool) -> None:
    ntk = _model(p_less_than_n)
    assert (ntk.n_params < ntk.n) == p_less_than_n
    exact, found = ntk.spectrum("exact"), ntk.spectrum("lanczos", products=100, steps=10)
    assert found.n == exact.n == ntk.n
    assert found.cost.products <= 100
    for form in (lambda s: s.log_det(1.0), lambda s: s.entropy(), lambda s: s.moment(2)):
        truth, estimate = form(exact), form(found)
        low, high = estimate.interval(0.999)
        assert low <= truth.value <= high, estimate
        assert truth.stderr == 0
        assert estimate.stderr is not None
    expected = exact.eigenvalues
    assert exact.log_det(1.0).value == pytest.approx(np.log1p(expected).sum(), rel=1e-9)
    weights = np.concatenate([np.ones(len(found.known)), np.ones(found.zeros)])
    nodes = np.concatenate([found.known, np.zeros(found.zeros), found.quadrature.nodes.ravel()])
    rest = found.quadrature.weights.ravel() * (found.n - len(weights)) / found.probes
    distance = wasserstein_distance(nodes, expected, np.concatenate([weights, rest]))
    assert distance < 0.02 * (expected[0] - expected[-1])


def test_moments_and_a_tolerance() -> None:
    ntk, exact = _model(False), _model(False).spectrum("exact")
    found = ntk.moments(6, "lanczos", rtol=0.05)
    for power, estimate in enumerate(found, 1):
        truth = exact.moment(power).value
        assert estimate.converged
        assert estimate.value == pytest.approx(truth, rel=0.15)
    assert ntk.moments(2)[1].value == pytest.approx(ntk.frobenius_norm("exact").value ** 2, rel=1e-9)
    assert ntk.log_det(0.5, rtol=0.01).value == pytest.approx(exact.log_det(0.5).value, rel=0.03)


def test_density_counts_and_bands() -> None:
    ntk = _model(False)
    exact, found = ntk.spectrum("exact"), ntk.spectrum("lanczos", products=120)
    grid = np.geomspace(1e-3, 100, 40)
    values, errors = exact.density(grid, 0.2)
    assert np.all(errors == 0)
    decades = np.log10(grid[1] / grid[0])
    inside = np.sum((exact.eigenvalues > 1e-3) & (exact.eigenvalues < 100))
    assert values.sum() * decades == pytest.approx(inside, rel=0.1)
    seen, bands = found.density(grid[-10:], 0.2)
    assert np.all(np.abs(seen - values[-10:]) <= 5 * bands + 1)


@pytest.mark.parametrize("p_less_than_n", [True, False])
def test_the_band_of_counts_holds_the_truth(p_less_than_n: bool) -> None:
    ntk = _model(p_less_than_n)
    exact, found = ntk.spectrum("exact"), ntk.spectrum("lanczos", products=100, steps=10)
    grid = np.geomspace(1e-4, 2 * exact.largest, 200)
    truth, *ends = exact.count_above(grid)
    assert all(np.array_equal(end, truth) for end in ends)
    assert truth[-1] == 0
    middle, low, high = found.count_above(grid)
    assert np.all((low <= middle) & (middle <= high))
    assert np.mean((low <= truth) & (truth <= high)) > 0.95
    assert np.all(np.diff(middle) <= 1e-9)


def test_matrices_are_taken_too() -> None:
    matrix = np.diag([3.0, 2.0, 1.0])
    assert ways.eigenpairs(matrix, 2).values.tolist() == [3.0, 2.0]
    assert ways.spectrum(as_map(matrix)).moment(1).value == pytest.approx(6)


def test_bad_requests_name_the_remedy() -> None:
    ntk = _model(False)
    with pytest.raises(ValueError, match="1 to n=240 eigenpairs, found k=0"):
        ntk.eigenpairs(0)
    with pytest.raises(ValueError, match="unknown method 'lanczos' for eigenpairs; choose one of 'auto'"):
        ntk.eigenpairs(1, "lanczos")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shift λ of log det"):
        ntk.log_det(0.0)
    with pytest.raises(ValueError, match="moments go from 1 to 6"):
        ntk.moments(7)
    with pytest.raises(ValueError, match=r"products=3 is too small.*use products="):
        ntk.spectrum("lanczos", products=3)
    with pytest.raises(ValueError, match="rtol must be positive"):
        ntk.eigenpairs(1, rtol=0)
    with pytest.raises(ValueError, match="a kernel is square"):
        ways.spectrum(np.ones((2, 3)))
    with pytest.raises(ValueError, match="return an array of the same shape"):
        ntk.spectrum("exact").trace_of(lambda x: x.sum())
    with pytest.raises(ValueError, match="width must be positive"):
        ntk.spectrum("exact").density(np.ones(1), 0.0)


def test_all_eigenvalues_where_they_cost_less() -> None:
    """A kernel of samples on their own is dense for a few passes, far fewer than n products."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 10)
    )
    ntk = NTK(model, torch.randn(60, 3, 8, 8))
    for found in (ntk.log_det(1.0), ntk.entropy(), ntk.spectrum(products=400).log_det(1.0)):
        assert found.stderr == 0
        assert found.cost.vjps == 10
    # Where only products tell anything, n of them are too many.
    assert "lanczos" in ntk.spectrum("lanczos").method
    coupled = NTK(model, torch.randn(60, 3, 8, 8), batch_dim=None)
    assert "lanczos" in coupled.spectrum(products=100).method
    # A matrix that does not fit the budget is not formed.
    small = NTK(model, torch.randn(60, 3, 8, 8), memory=1 << 22)
    assert "lanczos" in small.spectrum(products=100).method
