"""The paper's estimators: against a naive transcription, against what they must give, and what they spend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ntkscope.apps.paper import baselines
from ntkscope.apps.paper.baselines import hutch_plus_plus, one_sided
from ntkscope.operators.probes import random_signs

LIKE = torch.zeros(1, dtype=torch.float64)


def _factor(n: int, p: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, p)))


def _naive_hutch_plus_plus(matrix: np.ndarray, m: int, seed: int) -> float:
    """As the paper's code says it, column by column."""
    n = len(matrix)
    q, s = m // 6, (m - m // 6) // 2
    q += (m - m // 6) % 2
    basis = np.linalg.qr(matrix @ random_signs(n, 0, q, seed=seed, stream=0).astype(float))[0]
    probes = random_signs(n, 0, s, seed=seed, stream=1).astype(float)
    rest = probes - basis @ (basis.T @ probes)
    return float(np.trace(basis.T @ matrix @ basis) + np.trace(rest.T @ matrix @ rest) / s)


@pytest.mark.parametrize("m", [6, 7, 13, 60])
def test_hutch_plus_plus_is_the_papers(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_BLOCK", 4)
    kernel = _factor(80, 30) @ _factor(80, 30).T
    found = hutch_plus_plus(lambda rows: rows @ kernel, LIKE, 80, m, seed=3)
    assert found == pytest.approx(_naive_hutch_plus_plus(kernel.numpy(), m, 3), rel=1e-10)


def test_hutch_plus_plus_is_exact_when_the_sketch_holds_the_rank() -> None:
    factor = _factor(60, 4)
    found = hutch_plus_plus(lambda rows: rows @ factor @ factor.T, LIKE, 60, 48, seed=0)
    assert found == pytest.approx(float(factor.square().sum()), rel=1e-10)


def test_products_are_three_quarters_of_the_probes() -> None:
    rows_run = []

    def apply(rows: Tensor) -> Tensor:
        rows_run.append(len(rows))
        return rows

    hutch_plus_plus(apply, LIKE, 100, 60, seed=0)
    assert sum(rows_run) == 45
    rows_run.clear()
    one_sided(lambda rows: apply(rows).square().sum(1), LIKE, 100, 60, seed=0)
    assert sum(rows_run) == 60


def test_one_sided_errors_fall_as_one_over_the_root_of_the_probes() -> None:
    factor = _factor(600, 20)
    truth = float(factor.square().sum())

    def error(m: int) -> float:
        found = [one_sided(lambda z: (z @ factor).square().sum(1), LIKE, 600, m, s) for s in range(120)]
        assert abs(np.mean(found) - truth) < 4 * np.std(found) / np.sqrt(120)
        return float(np.std(found))

    assert error(6) / error(54) == pytest.approx(3, rel=0.25)


@pytest.mark.parametrize("m", [0, 5])
def test_too_few_probes(m: int) -> None:
    with pytest.raises(ValueError, match=f"take six probes or more, found {m}"):
        hutch_plus_plus(lambda rows: rows, LIKE, 10, m, seed=0)
    with pytest.raises(ValueError, match="six probes or more"):
        one_sided(lambda rows: rows.square().sum(1), LIKE, 10, m, seed=0)
