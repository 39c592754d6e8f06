import numpy as np
import pytest

import naive
from ntkscope import estimators
from ntkscope.metrics import evaluate
from ntkscope.operators.composed import as_factor
from ntkscope.operators.probes import sphere_probes
from ntkscope.results import Cost
from ntkscope.runs.gram import GramRun
from ntkscope.runs.statistics import jackknife
from spectra import kernel, spectrum

N = 60


class Factored:
    """K = J Jᵀ that offers J and Jᵀ."""

    def __init__(self, jacobian):
        self.jacobian = jacobian
        self.shape = (len(jacobian), len(jacobian))
        self.dtype = jacobian.dtype

    def __matmul__(self, block):
        return self.jacobian @ (self.jacobian.T @ block)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return Factored(rng.normal(size=(N, 20))), Factored(rng.normal(size=(N, 30)))


def test_equals_the_means_over_pairs(pair):
    probes = sphere_probes(N, 0, 15, seed=3)
    dense = [operator.jacobian @ operator.jacobian.T for operator in pair]
    found = estimators.inner_product(*pair, "gram", products=30, seed=3)
    assert found.value == pytest.approx(naive.gram(*dense, probes), rel=1e-12)
    assert found.cost.products == 30
    trace = estimators.trace(pair[0], "gram", products=15, seed=3)
    assert trace.value == pytest.approx(naive.hutchinson(dense[0], probes), rel=1e-12)


def test_error_is_nearly_the_jackknife(pair):
    found = estimators.inner_product(*pair, "gram", products=24, seed=3)
    probes = sphere_probes(N, 0, 12, seed=3)
    dense = [operator.jacobian @ operator.jacobian.T for operator in pair]
    expected = jackknife(lambda rows: naive.gram(*dense, rows.T), probes.T)
    # The jackknife, less at most the half of its square that it counts twice; or that half alone.
    assert expected.stderr * 0.7 < found.stderr < expected.stderr * 1.2


def test_error_bars_match_the_spread(pair):
    found = [estimators.frobenius_norm(pair[0], "gram", products=30, seed=s) for s in range(300)]
    spread = np.std([estimate.value for estimate in found])
    assert np.sqrt(np.mean([estimate.stderr**2 for estimate in found])) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize(("method", "exact_at"), [("rhutch", N), ("fhutch", 20)])
def test_one_mode_alone(pair, method, exact_at):
    J = pair[0].jacobian
    factor = J.T if method == "rhutch" else J
    probes = sphere_probes(factor.shape[1], 0, 10, seed=1)
    found = estimators.trace(pair[0], method, products=10, seed=1)
    assert found.value == pytest.approx(np.mean(np.sum((factor @ probes) ** 2, axis=0)), rel=1e-12)
    exact = estimators.trace(pair[0], method, products=exact_at)
    assert exact.value == pytest.approx(np.sum(J**2), rel=1e-12)
    assert (exact.stderr, exact.method, exact.cost.products) == (0, "exact", exact_at)


@pytest.mark.parametrize("method", ["rhutch", "fhutch", "gram"])
def test_an_operator_without_that_mode_is_refused(method):
    with pytest.raises(TypeError, match=rf"{method}.*which ndarray does not offer; pass an NTK"):
        estimators.trace(kernel(spectrum("slow", N)), method, products=10)


def test_as_many_products_as_columns_are_exact(pair):
    """Random probes of a small kernel tell less than its columns, and their error bars too little."""
    dense = [operator.jacobian @ operator.jacobian.T for operator in pair]
    found = estimators.inner_product(*pair, "gram", products=2 * N)
    assert found.value == pytest.approx(np.sum(dense[0] * dense[1]), rel=1e-12)
    assert (found.stderr, found.method, found.cost.products) == (0, "exact", 2 * N)
    rank = estimators.effective_rank(pair[0], "gram", products=N)
    assert rank.value == pytest.approx(np.trace(dense[0]) ** 2 / np.sum(dense[0] ** 2), rel=1e-12)
    assert estimators.effective_rank(pair[0], "gram", products=N - 1).stderr > 0


@pytest.mark.parametrize("other", [1.0, 0.8])
def test_probes_that_lie_evenly_on_two_coordinates(other):
    """Nearly a multiple of the identity: all the variance is between two probes."""
    kernel = Factored(np.diag([1.0, other]) ** 0.5)
    right = (1 + other) ** 2 / (1 + other**2)
    for seed in range(150):
        # The method itself takes the two columns in their place.
        run = GramRun([as_factor(kernel).T], seed=seed)
        run.grow(12 + seed % 12)
        found = evaluate(run.result(), "effective_rank", (0,), method="gram", cost=Cost(), seed=seed)
        assert abs(found.value - right) <= 6 * found.stderr
