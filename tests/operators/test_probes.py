"""Random probes: column j depends on (seed, stream, j) and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.stats

from ntkscope.operators.probes import normal_probes, random_signs, sphere_probes


def test_columns_do_not_depend_on_how_they_are_drawn() -> None:
    whole = random_signs(100, 0, 9, seed=3, stream=1)
    parts = np.concatenate(
        [random_signs(100, i, j, seed=3, stream=1) for i, j in ((0, 2), (2, 3), (3, 9))], axis=1
    )
    assert np.array_equal(whole, parts)


def test_a_shorter_column_is_the_beginning_of_a_longer_one() -> None:
    assert np.array_equal(random_signs(37, 0, 3, seed=0), random_signs(500, 0, 3, seed=0)[:37])


def test_they_are_signs() -> None:
    signs = random_signs(1001, 0, 7, seed=0)
    assert signs.shape == (1001, 7)
    assert signs.dtype == np.int8
    assert set(np.unique(signs).tolist()) == {-1, 1}
    assert random_signs(5, 2, 2, seed=0).shape == (5, 0)


def test_they_are_the_same_numbers_for_ever() -> None:
    digest = hashlib.sha256(random_signs(1000, 0, 20, seed=7, stream=3).tobytes()).hexdigest()
    assert digest[:16] == "036c760ef7d58b02"


@pytest.mark.parametrize("other", [{"seed": 1}, {"stream": 1}, {"start": 50, "stop": 90}], ids=str)
def test_seeds_streams_and_columns_are_independent(other: dict[str, int]) -> None:
    base = {"seed": 0, "stream": 0, "start": 0, "stop": 40}
    a = random_signs(2000, **base).astype(float)
    b = random_signs(2000, **(base | other)).astype(float)
    correlation = a.T @ b / np.sqrt(2000)
    assert abs(correlation).max() < 5.5
    assert np.mean(correlation**2) == pytest.approx(1, abs=0.15)


def test_means_and_neighbours_are_those_of_fair_coins() -> None:
    signs = random_signs(4096, 0, 64, seed=11).astype(float)
    assert abs(signs.sum()) / np.sqrt(signs.size) < 4
    assert abs((signs[1:] * signs[:-1]).sum()) / np.sqrt(signs.size) < 4
    assert abs((signs[:, 1:] * signs[:, :-1]).sum()) / np.sqrt(signs.size) < 4


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 0, "stream": -1}], ids=str)
def test_negative_arguments_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must not be negative, found"):
        random_signs(4, 0, 1, **bad)
    with pytest.raises(ValueError, match="must not be negative"):
        random_signs(4, -1, 1, seed=0)


# Probes on the sphere.


def test_sphere_probes_do_not_depend_on_how_they_are_drawn() -> None:
    whole = sphere_probes(100, 0, 9, seed=3, stream=1)
    parts = [sphere_probes(100, i, j, seed=3, stream=1) for i, j in ((0, 2), (2, 3), (3, 9))]
    assert np.array_equal(whole, np.concatenate(parts, axis=1))
    assert sphere_probes(5, 2, 2, seed=0).shape == (5, 0)


def test_sphere_probes_are_the_same_numbers_for_ever() -> None:
    found = sphere_probes(3, 4, 6, seed=7, stream=3)
    expected = [
        [-0.5433307546191946, 1.5000178028991222],
        [-0.12205539210865536, -0.5499281677757393],
        [1.6400896842374622, 0.6689735430288019],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_they_lie_on_the_sphere(size: int) -> None:
    probes = sphere_probes(size, 0, 50, seed=1)
    np.testing.assert_allclose(np.sum(probes**2, axis=0), size, rtol=1e-12)
    if size == 1:
        np.testing.assert_allclose(np.abs(probes), 1, rtol=1e-12)


@pytest.mark.parametrize("other", [{"seed": 1}, {"stream": 1}, {"start": 50, "stop": 90}], ids=str)
def test_sphere_probes_of_other_seeds_streams_and_columns_are_independent(other: dict[str, int]) -> None:
    base = {"seed": 0, "stream": 0, "start": 0, "stop": 40}
    a, b = sphere_probes(2000, **base), sphere_probes(2000, **(base | other))
    correlation = a.T @ b / np.sqrt(2000)
    assert abs(correlation).max() < 5.5
    assert np.mean(correlation**2) == pytest.approx(1, abs=0.15)


def test_no_coordinates_repeat_a_pattern() -> None:
    """Signs on two coordinates have two patterns; points on a sphere never meet again."""
    signs = random_signs(500, 0, 20, seed=0)[[3, 7]]
    probes = sphere_probes(500, 0, 20, seed=0)[[3, 7]]
    assert len(np.unique(signs[0] * signs[1])) == 2
    assert len(np.unique((probes[0] * probes[1]).round(9))) == 20


def test_moments_are_those_of_the_uniform_law() -> None:
    probes = sphere_probes(4, 0, 20_000, seed=5)
    np.testing.assert_allclose(probes @ probes.T / 20_000, np.eye(4), atol=0.04)
    # E ω₁⁴ = 3n/(n + 2).
    np.testing.assert_allclose(np.mean(probes**4, axis=1), 2, atol=0.07)


def test_negative_arguments_of_sphere_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative, found"):
        sphere_probes(4, 0, 1, seed=-1)


# Normal probes.


def test_normal_probes_do_not_depend_on_how_they_are_drawn() -> None:
    whole = normal_probes(70_001, 0, 5, seed=3, stream=1)
    parts = [normal_probes(70_001, i, j, seed=3, stream=1) for i, j in ((0, 2), (2, 3), (3, 5))]
    assert np.array_equal(whole, np.concatenate(parts, axis=1))
    assert whole.dtype == np.float32
    assert normal_probes(5, 2, 2, seed=0).shape == (5, 0)
    assert np.isfinite(normal_probes(1, 0, 50, seed=0)).all()


def test_normal_probes_are_the_same_numbers_for_ever() -> None:
    expected = [[0.0258332, 0.0979487], [-0.2475325, -0.1081533], [1.4606740, 0.6837291]]
    np.testing.assert_allclose(normal_probes(3, 4, 6, seed=7, stream=3), expected, rtol=1e-5)


def test_normal_probes_are_those_of_box_and_muller() -> None:
    size = 12_345
    half = -(-size // 2)
    raw = np.random.Philox(key=[7, 3], counter=[0, 4, 2, 0]).random_raw(half)
    words = [int(word) >> shift & 0xFFFFFFFF for word in raw for shift in (0, 32)]
    u, v = (np.array(words[:half]) + 0.5) / 2**32, np.array(words[half:]) / 2**32
    radii = np.sqrt(-2 * np.log(u))
    expected = np.concatenate([radii * np.cos(2 * np.pi * v), radii * np.sin(2 * np.pi * v)])[:size]
    np.testing.assert_allclose(normal_probes(size, 4, 5, seed=7, stream=3)[:, 0], expected, atol=3e-6)


def test_normal_probes_are_normal() -> None:
    values = normal_probes(50_001, 0, 8, seed=2).ravel().astype(float)
    for mean, expected, spread in ((values, 0, 1), (values**2, 1, 2), (values**4, 3, 96), (values**3, 0, 15)):
        assert abs(mean.mean() - expected) < 4 * np.sqrt(spread / values.size)
    assert scipy.stats.kstest(values[:20_000], "norm", method="asymp").pvalue > 1e-3
    # Both numbers of a pair, and their squares, are independent.
    first, second = np.split(normal_probes(20_000, 0, 8, seed=2).astype(float), 2)
    for left, right, spread in ((first, second, 1), (first**2 - 1, second**2 - 1, 4)):
        assert abs((left * right).mean()) < 4 * np.sqrt(spread / left.size)


@pytest.mark.parametrize("other", [{"seed": 1}, {"stream": 1}, {"start": 50, "stop": 90}], ids=str)
def test_normal_probes_of_other_seeds_streams_and_columns_are_independent(other: dict[str, int]) -> None:
    base = {"seed": 0, "stream": 0, "start": 0, "stop": 40}
    a, b = normal_probes(2000, **base).astype(float), normal_probes(2000, **(base | other)).astype(float)
    correlation = a.T @ b / np.sqrt(2000)
    assert abs(correlation).max() < 5.5
    assert np.mean(correlation**2) == pytest.approx(1, abs=0.15)


def test_negative_arguments_of_normal_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative, found"):
        normal_probes(4, 0, 1, seed=-1)
