import array_api_strict
import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator
from scipy.stats import t as student_t

from ntkscope import estimators
from ntkscope.results import Estimate
from ntkscope.runs import hutchpp, moments
from ntkscope.runs.hutchinson import HutchinsonRun
from spectra import kernel, low_rank, spectrum

N = 80
A, B = kernel(spectrum("slow", N)), kernel(spectrum("polynomial", N), seed=1)
TRUTH = {
    "trace": np.trace(A),
    "frobenius_norm": np.linalg.norm(A),
    "effective_rank": np.trace(A) ** 2 / np.linalg.norm(A) ** 2,
    "inner_product": np.sum(A * B),
    "alignment": np.sum(A * B) / np.linalg.norm(A) / np.linalg.norm(B),
}
CASES = [
    (metric, method)
    for metric, methods in estimators.METHODS.items()
    for method in methods
    if not metric.startswith("measure") and method not in ("rhutch", "fhutch", "gram")
]


def call(metric, method, one=A, two=B, **options):
    operators = (one, two) if metric in ("inner_product", "alignment") else (one,)
    return getattr(estimators, metric)(*operators, method=method, **options)


@pytest.mark.parametrize(("metric", "method"), CASES)
def test_every_method_estimates_its_metric(metric, method):
    found = call(metric, method, products=None if method == "exact" else 60, max_products=None)
    assert found.quantity == metric
    if method == "exact":
        assert found.value == pytest.approx(TRUTH[metric], rel=1e-12)
        assert found.stderr == 0
    else:
        low, high = found.interval(0.9999)
        assert low < TRUTH[metric] < high
        assert found.cost.products <= 60


@pytest.mark.parametrize("method", ["hutch++", "sketch", "nystrom"])
@pytest.mark.parametrize(
    "wrap",
    [torch.asarray, array_api_strict.asarray, aslinearoperator],
    ids=["torch", "strict", "scipy"],
)
def test_every_library_gives_the_same_numbers(wrap, method):
    expected = estimators.measure(A, [B], method, products=90)
    found = estimators.measure(wrap(A), [wrap(B)], method, products=90)
    for (_, one), (_, other) in zip(found.rows(), expected.rows(), strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9)
        assert one.stderr == pytest.approx(other.stderr, rel=1e-6)


def test_a_budget_of_n_products_is_exact():
    for method in ("hutchinson", "hutch++", "xnystrace", "xtrace"):
        found = estimators.trace(A, method, products=N)
        assert (found.method, found.stderr, found.cost.products) == ("exact", 0, N)


@pytest.mark.parametrize("method", ["auto", "hutch++", "sketch", "nystrom"])
def test_a_single_state(method):
    found = estimators.measure(np.array([[2.0]]), [np.array([[3.0]])], method)
    assert [estimate.value for _, estimate in found.rows()] == [2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("method", ["hutch++", "sketch", "nystrom"])
def test_a_zero_kernel(method):
    zero = np.zeros((N, N))
    found = estimators.measure(zero, [A], method, products=90)
    assert (found.trace.value, found.trace.stderr) == (0, None)
    assert (found.frobenius_norm.value, found.frobenius_norm.stderr) == (0, None)
    assert np.isnan(found.effective_rank.value)
    assert "not defined" in found.effective_rank.note
    assert np.isnan(found.alignment[0].value)
    assert estimators.trace(zero).value == 0


def test_error_is_never_a_false_zero():
    identity = np.eye(N)
    for method in ("hutchinson", "xtrace", "xnystrace"):
        found = estimators.trace(identity, method, products=30)
        assert found.value == pytest.approx(N, rel=1e-12)
        assert 0 < found.stderr < 1e-10 * N


def test_measure_all_gives_every_pair():
    third = low_rank(N, 30)
    found = estimators.measure_all([A, B, third], products=3 * 60)
    exact = estimators.measure_all([A, B, third], "exact")
    assert exact[0].alignment[0].value == pytest.approx(TRUTH["alignment"], rel=1e-12)
    for one, true in zip(found, exact, strict=True):
        assert one.cost.products <= 180
        for (_, estimate), (_, expected) in zip(one.rows(), true.rows(), strict=True):
            low, high = estimate.interval(0.9999)
            assert low < expected.value < high


def test_trace_from_elsewhere():
    source = Estimate(float(np.trace(A)), 0.0, "per-sample")
    found = estimators.effective_rank(A, "sketch", products=60, trace_run=source)
    norm = estimators.frobenius_norm(A, "sketch", products=60)
    assert found.value == pytest.approx(np.trace(A) ** 2 / norm.value**2, rel=1e-12)
    assert found.stderr / found.value == pytest.approx(2 * norm.stderr / norm.value, rel=1e-9)
    assert found.method == "sketch, trace by per-sample"
    run = HutchinsonRun(lambda a, b: np.full(b - a, np.trace(A)), method="draws")
    everything = estimators.measure(A, [B], "sketch", products=120, trace_run=run)
    assert everything.trace.method == "draws"
    assert everything.effective_rank.value == pytest.approx(TRUTH["effective_rank"], rel=0.05)


ERRORS = [
    (lambda: estimators.trace(A, "lanczos"), ValueError, "unknown method 'lanczos' for trace; choose one of"),
    (lambda: estimators.frobenius_norm(A, "rhutch"), ValueError, "unknown method 'rhutch' for frob"),
    (lambda: estimators.trace(A, "hutch++", products=2), ValueError, "too small.*at least 3 products"),
    (lambda: estimators.alignment(A, B, "sketch", products=5), ValueError, "at least 12.*use products=12"),
    (lambda: estimators.trace(A[:, :5]), ValueError, r"is square, found shape \(80, 5\); pass K = J Jᵀ"),
    (lambda: estimators.inner_product(A, B[:5, :5]), ValueError, r"found shapes \(80, 80\) and \(5, 5\)"),
    (lambda: estimators.trace(A, rtol=0.0), ValueError, "rtol must be positive, found 0.0"),
    (lambda: estimators.trace(A, atol=-1.0), ValueError, "atol must be positive, found -1.0"),
    (lambda: estimators.trace(A, seconds=0), ValueError, "seconds must be positive, found 0"),
    (lambda: estimators.trace(A, products=9, rtol=0.1), ValueError, "products=9 together with rtol"),
    (lambda: estimators.trace(A, products=9.5), TypeError, "products must be a whole number, found 9.5"),
    (lambda: estimators.trace(A, seed=-1), ValueError, "seed must not be negative, found -1"),
    (lambda: estimators.trace(A, seed=0.5), TypeError, "seed must be an int, found 0.5"),
    (lambda: estimators.trace("kernel"), TypeError, "needs `shape` and `@`, found str; pass a matrix"),
    (lambda: estimators.trace(A[0]), ValueError, r"two dimensions.*found shape \(80,\)"),
    (lambda: estimators.trace(A + 0j), ValueError, "the operator is complex"),
    (lambda: estimators.measure_all([]), ValueError, "at least one operator, found none"),
]


@pytest.mark.parametrize(("faulty", "error", "message"), ERRORS, ids=[text for _, _, text in ERRORS])
def test_errors_say_what_was_found_and_what_to_do(faulty, error, message):
    with pytest.raises(error, match=message):
        faulty()


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "xnystrace"])
def test_unbiased(method):
    values = [estimators.trace(A, method, products=24, seed=seed).value for seed in range(100)]
    z = (np.mean(values) - TRUTH["trace"]) / (np.std(values) / np.sqrt(100))
    assert abs(z) < 4


def test_the_same_check_finds_a_bias(monkeypatch):
    """Hutch++ that forgets to take the sketch out of its residual probes is caught."""
    monkeypatch.setattr(hutchpp, "_residual_samples", lambda grams, size: grams.inner("G", "AG"))
    values = [estimators.trace(A, "hutch++", products=24, seed=seed).value for seed in range(200)]
    z = (np.mean(values) - TRUTH["trace"]) / (np.std(values) / np.sqrt(200))
    assert abs(z) > 4


COVERED = [
    ("trace", "xtrace"),
    ("trace", "xnystrace"),
    ("alignment", "sketch"),
    ("effective_rank", "sketch"),
    ("frobenius_norm", "nystrom"),
]


def coverage(metric, method):
    products = 60 if metric == "alignment" else 30
    found = [call(metric, method, products=products, seed=seed) for seed in range(100)]
    reach = student_t.ppf(0.975, [estimate.degrees_of_freedom for estimate in found])
    miss = [abs(estimate.value - TRUTH[metric]) / estimate.stderr for estimate in found]
    return np.mean(np.array(miss) < reach)


@pytest.mark.parametrize(("metric", "method"), COVERED)
def test_intervals_cover(metric, method):
    assert coverage(metric, method) >= 0.9


def test_the_same_check_finds_error_bars_too_small(monkeypatch):
    """The spread of leave-one-out samples alone is no error bar."""
    monkeypatch.setattr(
        moments, "with_shared_probes", lambda summary, *_: (summary.stderr, summary.degrees_of_freedom)
    )
    assert coverage("frobenius_norm", "sketch") < 0.9


@pytest.mark.parametrize("method", ["sketch", "nystrom"])
def test_the_variance_of_shared_probes_is_without_bias(method):
    """stderr² is the variance of the estimates in the mean; the spread alone shows half of it here."""
    found = [call("trace", method, products=40, seed=seed) for seed in range(300)]
    variance = np.var([estimate.value for estimate in found])
    shown = np.mean([estimate.stderr**2 for estimate in found])
    spread = np.mean([np.var(estimate.samples, ddof=1) / len(estimate.samples) for estimate in found])
    assert 0.8 < shown / variance < 1.3
    assert spread / variance < 0.8
