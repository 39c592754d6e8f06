"""Error bars where probes see little: few coordinates, twins, edges of ranks, budgets near n, heavy tails."""

import numpy as np
import pytest
import torch

from ntkscope import estimators
from ntkscope.operators.composed import as_map
from ntkscope.operators.probes import sphere_probes
from ntkscope.runs.gram import gram_moments
from ntkscope.runs.hutchinson import HutchinsonRun, two_sided_draw
from ntkscope.runs.nystrom import NystromRun
from ntkscope.runs.sketch import SketchRun
from spectra import kernel, low_rank, spectrum


def on_few_coordinates(n, block):
    places = 5 * np.arange(len(block)) + 3
    dense = np.zeros((n, n))
    dense[np.ix_(places, places)] = block
    return dense


def wishart(n, seed=0):
    rows = np.random.default_rng([seed, n]).standard_normal((n, 2 * n))
    return rows @ rows.T


def misses(found, right, level=0.9999):
    """How many say that they know, and lie outside of what they say."""
    slack = 1e-9 * abs(right)
    intervals = [e.interval(level) for e in found if e.stderr is not None]
    return sum(not low - slack <= right <= high + slack for low, high in intervals)


# Variances from the sphere.


@pytest.mark.parametrize("n", [2, 3, 12])
@pytest.mark.parametrize("values", ["rank one", "spread"])
def test_the_gradient_tells_the_variance(n, values):
    """Var ωᵀKω = 2n/(n+2) (‖K‖² - tr²/n), probe by probe in the mean."""
    K = kernel(np.eye(n)[0] if values == "rank one" else np.arange(1.0, n + 1))
    drawn = two_sided_draw(as_map(K), seed=0)(0, 20_000)
    expected = 2 * n / (n + 2) * (np.sum(K * K) - np.trace(K) ** 2 / n)
    assert drawn.variances.mean() == pytest.approx(expected, rel=0.05)
    assert np.var(drawn.values) == pytest.approx(expected, rel=0.05)


def test_one_probe_of_hutchinson_knows_its_error():
    found = estimators.trace(kernel(spectrum("flat", 60)), "hutchinson", products=1)
    assert found.stderr == pytest.approx(np.sqrt(2 * 60 / 62 * (60 * 1.17**2 / 3.7)), rel=0.6)
    assert found.degrees_of_freedom == 1
    identity = estimators.trace(3 * np.eye(40), "hutchinson", products=2)
    assert identity.value == pytest.approx(120, rel=1e-13)
    assert 0 < identity.stderr < 1e-10


@pytest.mark.parametrize("count", [1, 2, 6])
def test_intervals_of_rank_one_cover_from_the_first_probe(count):
    K = low_rank(50, 1)
    found = []
    for seed in range(300):
        run = HutchinsonRun(two_sided_draw(as_map(K), seed=seed), method="hutchinson")
        run.grow(count)
        found.append(run.result())
    assert 0.91 <= 1 - misses(found, np.trace(K), 0.95) / 300 <= 0.99


# Few coordinates, twins and edges of ranks.


@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "hutch++", "hutchinson"])
@pytest.mark.parametrize("block", [np.ones((2, 2)), np.diag([3.0, 1.0, 1.0]), low_rank(5, 2)], ids=str)
def test_traces_on_few_coordinates(method, block):
    K = on_few_coordinates(150, block)
    found = [estimators.trace(K, method, products=6, seed=seed) for seed in range(30)]
    assert misses(found, np.trace(K)) <= 1


@pytest.mark.parametrize("method", ["sketch", "nystrom", "hutch++"])
@pytest.mark.parametrize("metric", ["frobenius_norm", "effective_rank"])
def test_squares_on_few_coordinates(method, metric):
    K = on_few_coordinates(150, np.diag([2.0, 2.0, 1.0, 1.0]))
    right = {"frobenius_norm": np.sqrt(10), "effective_rank": 3.6}[metric]
    call = getattr(estimators, metric)
    found = [call(K, method, products=products, seed=s) for products in (9, 12, 15) for s in range(10)]
    assert misses(found, right) <= 1


@pytest.mark.parametrize("metric", ["inner_product", "alignment"])
@pytest.mark.parametrize("rank", [3, 5, 40])
def test_a_kernel_and_its_twin(metric, rank):
    """The twin's products lie in the basis by the kernel's own, which says nothing of its rank."""
    K = low_rank(60, rank)
    right = 1.0 if metric == "alignment" else np.sum(K * K)
    call = getattr(estimators, metric)
    found = [call(K, K.copy(), "sketch", products=24, seed=seed) for seed in range(30)]
    assert misses(found, right, 0.999) <= 1
    if metric == "inner_product" and rank == 40:
        assert min(estimate.relative_stderr for estimate in found) > 1e-3


def test_one_exhausted_kernel_beside_one_that_is_not():
    A, B = low_rank(60, 2), wishart(60)
    run = SketchRun([as_map(A), as_map(B)], seed=0)
    run.grow(60)
    moments = run.result()
    assert moments.value((0, 0)) == pytest.approx(np.sum(A * A), rel=1e-9)
    assert moments.monomial({(0, 0): 1}).summary.stderr < 1e-9 * np.sum(A * A)
    assert moments.monomial({(1, 1): 1}).summary.stderr > 1e-3 * np.sum(B * B)


@pytest.mark.parametrize("rank", [3, 6, 10])
@pytest.mark.parametrize("metric", ["trace", "frobenius_norm", "effective_rank"])
def test_as_many_probes_as_large_directions(rank, metric):
    """All leave-one-out samples may miss the same direction, and agree; all probes together hold it."""
    K = low_rank(80, rank) + 1e-4 * kernel(spectrum("flat", 80))
    exact = getattr(estimators, metric)(K, "exact").value
    found = [getattr(estimators, metric)(K, "sketch", products=2 * rank, seed=s) for s in range(60)]
    assert misses(found, exact, 0.999) <= 2


@pytest.mark.parametrize("run", [SketchRun, NystromRun])
def test_what_is_captured_is_in_the_kernel(run):
    for name in ("flat", "slow", "fast"):
        K = kernel(spectrum(name, 60))
        grown = run([as_map(K)], seed=1)
        grown.grow(16)
        moments = grown.result()
        assert moments.trace_least[0] <= np.trace(K) * (1 + 1e-9)
        assert moments.inner_least[0, 0] <= np.sum(K * K) * (1 + 1e-9)
        assert moments.inner_least[0, 0] > 0


# Budgets near n.


@pytest.mark.parametrize("n", [6, 9, 20])
@pytest.mark.parametrize("method", ["xnystrace", "xtrace"])
def test_traces_near_n_are_unbiased_and_cover(n, method):
    found, right = [], []
    for seed in range(200):
        K = wishart(n, seed)
        found.append(estimators.trace(K, method, products=n - 1, seed=seed))
        right.append(np.trace(K))
    shift = np.array([e.value for e in found]) / right - 1
    assert abs(shift.mean()) / (shift.std(ddof=1) / np.sqrt(200)) < 4
    covered = [e.interval()[0] <= t <= e.interval()[1] for e, t in zip(found, right, strict=True)]
    assert 0.9 <= np.mean(covered) <= 0.995


@pytest.mark.parametrize("method", ["sketch", "nystrom", "hutch++"])
def test_alignments_are_none_above_one(method):
    least = {"sketch": 12, "nystrom": 4, "hutch++": 18}[method]
    for n in (7, 12):
        A, B = wishart(n), wishart(n, 1)
        for products in (2 * n - 2, n):
            if products >= least:
                found = [estimators.alignment(A, B, method, products=products, seed=s) for s in range(15)]
                assert max(estimate.value for estimate in found) <= 1


def test_singular_probes_are_no_error():
    for seed in range(200):
        assert np.isfinite(estimators.trace(wishart(4), "xnystrace", products=3, seed=seed).value)


# Kernels of rank 0 and 1.


@pytest.mark.parametrize("method", ["sketch", "nystrom", "hutch++"])
def test_the_zero_kernel(method):
    for n in (2, 9):
        for metric in ("trace", "frobenius_norm"):
            found = getattr(estimators, metric)(np.zeros((n, n)), method, seed=1)
            assert found.value == 0


def test_gram_knows_the_effective_rank_of_rank_one():
    """tr² and ‖K‖² move together there: the value is 1, whatever the probes."""
    vector = np.random.default_rng(0).normal(size=40)
    for probes in (4, 7, 30):
        forms = vector @ sphere_probes(40, 0, probes, seed=probes)
        moments = gram_moments(np.outer(forms, forms)[None], 2.0**-52)
        found = moments.monomial({(0,): 2, (0, 0): -1}).summary
        assert found.value == pytest.approx(1, rel=1e-12)
        assert moments.monomial({(0,): 1}).summary.stderr > 0.05 * moments.value((0,))


def test_three_probes_of_gram_tell_no_spread_of_squares():
    forms = wishart(3)[None]
    assert gram_moments(forms, 2.0**-52).monomial({(0, 0): 0.5}).summary.stderr is None
    assert gram_moments(forms, 2.0**-52).monomial({(0,): 1}).summary.stderr > 0


# Half precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["sketch", "nystrom", "hutch++"])
def test_matrices_of_half_precision(dtype, method):
    K = torch.from_numpy(kernel(spectrum("slow", 90))).to(dtype)
    right = float(K.double().trace())
    assert as_map(K).probes(0, 2, seed=0, stream=0).dtype == torch.float32
    found = estimators.trace(K, method, products=60)
    assert abs(found.value - right) < 5 * found.stderr + 1e-3 * right
    assert found.stderr < 0.03 * right


# Heavy tails, to a tolerance.


def log_normal(n):
    rows = np.random.default_rng(0).standard_normal((n, 40))
    rows *= np.exp(1.5 * np.random.default_rng(1).standard_normal((n, 1)))
    return rows @ rows.T


def outlier(n):
    rows = np.random.default_rng(2).standard_normal((n, 40))
    rows[:5] *= 60
    return rows @ rows.T


def two_outputs(n):
    rows = np.random.default_rng(3).standard_normal((n, 40))
    rows[1] += 0.7 * rows[0]
    rows[:2] *= 30
    return rows @ rows.T


@pytest.mark.parametrize("make", [log_normal, outlier, two_outputs])
@pytest.mark.parametrize("metric", ["trace", "frobenius_norm", "effective_rank"])
@pytest.mark.parametrize("method", ["auto", "nystrom", "hutch++"])
def test_few_runs_miss_twice_the_tolerance(make, metric, method):
    """The whole of it, with 400 seeds and every method: python -m benchmarks.heavy_tails."""
    K = make(240)
    call = getattr(estimators, metric)
    right = call(K, "exact").value
    errors = [abs(call(K, method, rtol=0.02, seed=seed).value / right - 1) for seed in range(25)]
    assert sum(error > 0.04 for error in errors) <= 2
    assert max(errors) < 0.1
