import numpy as np
import pytest
from scipy.stats import t as student_t

from ntkscope.runs.statistics import (
    Summary,
    combine_independent,
    jackknife,
    power_product,
    summarise,
    summarise_sums,
)


def test_jackknife_of_a_mean_is_the_standard_error():
    samples = np.random.default_rng(0).normal(size=20)
    assert jackknife(np.mean, samples).stderr == pytest.approx(summarise(samples).stderr, rel=1e-12)


def test_one_sample_has_no_error():
    assert summarise(np.ones(1)).stderr is None
    assert jackknife(np.mean, np.ones(1)).stderr is None
    with pytest.raises(ValueError, match="at least one sample, found none"):
        summarise(np.zeros(0))


def test_ratios_keep_correlation():
    x = 5 + np.random.default_rng(0).normal(size=(200, 1))
    pairs = np.hstack([x, 2 * x])
    value, influence = power_product(list(pairs.mean(axis=0)), [1.0, -1.0], pairs)
    assert value == pytest.approx(0.5)
    assert np.std(influence) < 1e-12
    noise = pairs + np.random.default_rng(1).normal(size=pairs.shape)
    value, influence = power_product(list(noise.mean(axis=0)), [2.0, -1.0], noise)
    expected = jackknife(lambda rows: rows[:, 0].mean() ** 2 / rows[:, 1].mean(), noise)
    assert np.std(influence, ddof=1) / np.sqrt(200) == pytest.approx(expected.stderr, rel=0.02)


def test_independent_factors():
    found = combine_independent([Summary(10.0, 0.1, 5.0), Summary(4.0, 0.0)], [2.0, -0.5])
    assert found.value == 50
    assert found.stderr == pytest.approx(1.0)
    assert found.degrees_of_freedom == pytest.approx(5)
    assert combine_independent([Summary(1.0, None)], [1.0]).stderr is None
    assert combine_independent([Summary(2.0, 0.0)], [1.0]).stderr == 0


def test_one_part_is_a_plain_mean():
    samples = np.random.default_rng(0).chisquare(3, size=9)
    plain, parts = summarise(samples, level=float(samples.mean())), summarise_sums(samples[:, None])
    assert parts.value == pytest.approx(plain.value)
    assert parts.stderr == pytest.approx(plain.stderr)
    assert parts.degrees_of_freedom == pytest.approx(plain.degrees_of_freedom)
    assert summarise_sums(samples[:1, None]).stderr is None
    assert summarise_sums(np.ones((4, 3))).stderr == 0


@pytest.mark.parametrize("parts", [4, 15, 100])
@pytest.mark.parametrize("freedom", [1, 6, 200])
def test_two_rows_of_many_parts_know_their_error(parts, freedom):
    """Sums of unequal χ² parts: the interval of two rows covers, and is no wider than it must be."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2, size=parts)
    found = [summarise_sums(weights * rng.chisquare(freedom, size=(2, parts)) / freedom) for _ in range(800)]
    miss = np.array([abs(s.value - weights.sum()) / s.stderr for s in found])
    bound = student_t.ppf(0.975, [s.degrees_of_freedom for s in found])
    # Student's t with one degree of freedom a part covers 84% of four χ²₁ parts.
    assert 0.89 <= np.mean(miss < bound) <= 0.98
    assert np.median([s.degrees_of_freedom for s in found]) > parts / 4
    true = np.sqrt((weights**2).sum() * 2 / freedom / 2)
    assert np.sqrt(np.mean([s.stderr**2 for s in found])) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("freedom", [1, 2, 6, 30])
@pytest.mark.parametrize("count", [6, 20])
def test_intervals_of_quadratic_forms_cover(freedom, count):
    """Means of χ² with few degrees of freedom; Student's t with k-1 covers 83% of the worst."""
    samples = np.random.default_rng(0).chisquare(freedom, size=(400, count)) / freedom
    found = [summarise(row, level=float(row.mean())) for row in samples]
    miss = np.array([abs(s.value - 1) / s.stderr for s in found])
    covered = miss < student_t.ppf(0.975, [s.degrees_of_freedom for s in found])
    assert 0.92 <= np.mean(covered) <= 0.995
    if (freedom, count) == (1, 6):
        assert np.mean(miss < student_t.ppf(0.975, count - 1)) < 0.88
