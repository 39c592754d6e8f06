import numpy as np
import pytest

from naive import hutch_plus_plus
from ntkscope import estimators
from ntkscope.operators.composed import as_map
from ntkscope.operators.probes import sphere_probes
from ntkscope.runs.hutchpp import HutchPlusPlusRun
from spectra import kernel, low_rank, spectrum

N = 120


def probes(count, stream, seed=5):
    return sphere_probes(N, 0, count, seed=seed, stream=stream)


@pytest.mark.parametrize("name", ["flat", "polynomial", "slow", "step"])
def test_equals_the_paper(name):
    K = kernel(spectrum(name, N))
    found = estimators.trace(K, "hutch++", products=36, seed=5)
    assert found.value == pytest.approx(hutch_plus_plus(K, probes(8, 0), probes(20, 1)), rel=1e-10)
    assert found.cost.products == 36


def test_norm_alignment_and_effective_rank_equal_separate_runs():
    A, B = kernel(spectrum("slow", N)), kernel(spectrum("polynomial", N), seed=1)
    runs = [
        hutch_plus_plus(M, probes(8, 2 * i), probes(20, 2 * i + 1))
        for i, M in enumerate((A @ A, A @ B, B @ B))
    ]
    found = estimators.alignment(A, B, "hutch++", products=216, seed=5)
    assert found.value == pytest.approx(runs[1] / np.sqrt(runs[0] * runs[2]), rel=1e-10)
    assert found.cost.products == 216
    trace, square = (
        hutch_plus_plus(A, probes(8, 0), probes(20, 1)),
        hutch_plus_plus(A @ A, probes(8, 2), probes(20, 3)),
    )
    found = estimators.effective_rank(A, "hutch++", products=108, seed=5)
    assert found.value == pytest.approx(trace**2 / square, rel=1e-10)
    found = estimators.frobenius_norm(A, "hutch++", products=72, seed=5)
    assert found.value == pytest.approx(np.sqrt(runs[0]), rel=1e-10)


def test_exact_below_the_rank_and_spare_products_go_to_the_residual():
    K = low_rank(N, 5)
    operator = as_map(K)
    run = HutchPlusPlusRun(operator, seed=0)
    run.grow(60)
    found = run.result()
    assert found.value == pytest.approx(np.trace(K), rel=1e-12)
    assert operator.ledgers[0].products == 60
    assert len(found.samples) == 60 - 13 - 5
    assert 0 < found.stderr < 1e-12 * found.value


def test_one_residual_probe_has_no_error_bar():
    assert estimators.trace(kernel(spectrum("slow", N)), "hutch++", products=3).stderr is None


def test_growth_in_steps_changes_nothing():
    K = kernel(spectrum("slow", N))
    seen = []
    stepwise = estimators.trace(K, "hutch++", products=90, progress=lambda e, s, b: seen.append((s, b)))
    assert stepwise.value == pytest.approx(estimators.trace(K, "hutch++", products=90).value, rel=1e-12)
    assert [spent for spent, _ in seen] == sorted(spent for spent, _ in seen)
    assert seen[-1] == (90, 90)


def test_a_multiple_of_the_identity_is_known_exactly():
    # As plain Hutchinson knows it: the projection must not make the probes' lengths random.
    found = estimators.trace(3.0 * np.eye(N), "hutch++", products=36, seed=1)
    assert found.value == pytest.approx(3.0 * N, rel=1e-12)
    assert found.stderr < 1e-12 * found.value


def test_a_basis_of_all_directions_but_one_is_exact():
    # What is left of a probe is that direction, or nothing but rounding, which must not be scaled up.
    K = kernel(spectrum("flat", 9))
    ranks = set()
    for products in range(36, 60):
        run = HutchPlusPlusRun(as_map(K), seed=products)
        run.grow(products)
        # Signs of so few numbers repeat themselves now and then.
        rank = run._grams.width("Q")
        ranks.add(rank)
        if rank >= 8:
            assert run.result().value == pytest.approx(np.trace(K), rel=1e-9)
    assert {8, 9} <= ranks
