"""Random signs: column j depends on (seed, stream, j) and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ntkscope.operators.probes import random_signs


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
