import numpy as np
import pytest

import naive
from ntkscope import estimators
from ntkscope.operators.composed import as_map
from ntkscope.operators.probes import sphere_probes
from ntkscope.runs.residuals import _leave_one_out
from ntkscope.runs.sketch import SketchRun
from spectra import kernel, low_rank, spectrum

N = 90


def omega(count, seed=5):
    return sphere_probes(N, 0, count, seed=seed)


@pytest.fixture
def pair():
    return kernel(spectrum("slow", N)), kernel(spectrum("polynomial", N), seed=1)


@pytest.mark.parametrize("name", ["flat", "polynomial", "slow", "step"])
def test_xtrace_equals_the_paper(name):
    K = kernel(spectrum(name, N))
    found = estimators.trace(K, "xtrace", products=24, seed=5)
    np.testing.assert_allclose(found.samples, naive.xtrace(K, omega(12)), rtol=1e-10)
    assert found.value == pytest.approx(naive.xtrace(K, omega(12)).mean(), rel=1e-10)
    assert found.cost.products == 24


def test_norm_equals_the_blocks(pair):
    found = estimators.frobenius_norm(pair[0], "sketch", products=24, seed=5)
    assert found.value**2 == pytest.approx(naive.shared_sketch(pair[0], pair[0], omega(12)).mean(), rel=1e-10)


def test_inner_product_equals_the_blocks(pair):
    found = estimators.inner_product(*pair, "sketch", products=60, seed=5)
    np.testing.assert_allclose(found.samples, naive.shared_sketch(*pair, omega(10)), rtol=1e-9)
    assert found.cost.products == 60


def test_a_probe_left_out_is_a_probe_never_drawn(pair):
    maps = [as_map(K) for K in pair]
    run = SketchRun(maps, seed=5)
    run.grow(60)
    small = run._deflated().without(9)
    fewer = SketchRun(maps, seed=5)
    fewer.grow(54)
    expected = _leave_one_out(fewer._deflated())
    found = _leave_one_out(small)
    np.testing.assert_allclose(found.traces, expected.traces, rtol=1e-9)
    np.testing.assert_allclose(found.inner, expected.inner, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["sketch", "nystrom"])
def test_exact_when_the_rank_is_below_the_probes(method):
    A, B = low_rank(N, 4), low_rank(N, 5, seed=1)
    found = estimators.measure(A, [B], method, products=80)
    expected = estimators.measure(A, [B], "exact")
    for (name, estimate), (_, exact) in zip(found.rows(), expected.rows(), strict=True):
        assert estimate.value == pytest.approx(exact.value, rel=1e-10), name
        assert 0 < estimate.stderr < 1e-10 * exact.value, name


def test_growth_in_steps_changes_nothing(pair):
    def grown(*steps):
        run = SketchRun([as_map(K) for K in pair], seed=0)
        for step in steps:
            run.grow(step)
        return run.result()

    once = grown(70)
    for steps in [(13, 70), (12, 14, 16, 40, 69, 70), tuple(range(1, 71))]:
        stepwise = grown(*steps)
        np.testing.assert_allclose(stepwise.traces, once.traces, rtol=1e-11)
        np.testing.assert_allclose(stepwise.inner, once.inner, rtol=1e-11)


def test_products_lost_to_an_interrupt_are_made_up(pair):
    class Interrupted:
        def __init__(self, dense, fail_at):
            self.dense, self.shape, self.dtype = dense, dense.shape, dense.dtype
            self.calls, self.fail_at = 0, fail_at

        def __matmul__(self, block):
            self.calls += 1
            if self.calls == self.fail_at:
                raise KeyboardInterrupt
            return self.dense @ block

    for fail_at in (1, 2, 3, 4):
        run = SketchRun([as_map(Interrupted(pair[0], fail_at))], seed=0)
        run.grow(20) if fail_at > 2 else None
        with pytest.raises(KeyboardInterrupt):
            run.grow(40)
        if fail_at > 2:
            assert np.isfinite(run.result().traces).all()
        run.grow(40)
        whole = SketchRun([as_map(pair[0])], seed=0)
        whole.grow(40)
        np.testing.assert_allclose(run.result().inner, whole.result().inner, rtol=1e-10)


def test_rank_deficient_single_precision():
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.normal(size=(800, 60)))
    root = (vectors * 0.7 ** (np.arange(60) / 2)).astype(np.float32)

    class Product:
        shape, dtype = (800, 800), np.dtype(np.float32)

        def __matmul__(self, block):
            return root @ (root.T @ block)

    true = np.sum(root.astype(float) ** 2)
    for method, products in (("xtrace", 100), ("xnystrace", 100), ("hutch++", 200)):
        found = estimators.trace(Product(), method, products=products)
        assert found.value == pytest.approx(true, rel=1e-5), method
        assert found.stderr > 0
