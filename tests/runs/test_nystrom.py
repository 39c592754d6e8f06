import numpy as np
import pytest

import naive
from ntkscope import estimators
from ntkscope.operators.composed import as_map
from ntkscope.operators.probes import sphere_probes
from ntkscope.runs.nystrom import NystromRun, _approximate, _leave_one_out
from spectra import kernel, spectrum

N = 90


def omega(count, seed=5):
    return sphere_probes(N, 0, count, seed=seed)


@pytest.mark.parametrize("name", ["flat", "polynomial", "slow", "step"])
def test_xnystrace_equals_the_paper(name):
    K = kernel(spectrum(name, N))
    found = estimators.trace(K, "xnystrace", products=14, seed=5)
    np.testing.assert_allclose(found.samples, naive.xnystrace(K, omega(14)), rtol=1e-9)


def test_inner_product_equals_dense_approximations():
    A, B = kernel(spectrum("slow", N)), kernel(spectrum("polynomial", N), seed=1)
    found = estimators.inner_product(A, B, "nystrom", products=24, seed=5)
    np.testing.assert_allclose(found.samples, naive.nystrom_inner(A, B, omega(12)), rtol=1e-9)


def test_a_probe_left_out_is_a_probe_never_drawn():
    maps = [as_map(kernel(spectrum(name, N))) for name in ("slow", "polynomial")]
    samples = []
    for products, left_out in ((24, 11), (22, None)):
        run = NystromRun(maps, seed=5)
        run.grow(products)
        small = _approximate(maps[0], run._grams, 2, 2.0**-52)
        samples.append(_leave_one_out(small if left_out is None else small.without(left_out)))
    np.testing.assert_allclose(samples[0][0], samples[1][0], rtol=1e-9)
    np.testing.assert_allclose(samples[0][1], samples[1][1], rtol=1e-9)


def test_fast_decay_at_sixty_products():
    K = kernel(spectrum("fast", 1000))
    assert estimators.trace(K, "xnystrace", products=60).value == pytest.approx(np.trace(K), rel=1e-6)
