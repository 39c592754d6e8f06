"""Hutch++, RHutch and FHutch on a known kernel: unbiased, with honest errors, the same for every chunk."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from ntkscope import NTK, Estimate
from ntkscope.measure import METHODS as BY_METRIC
from reference import Dense, dense
from zoo import BY_NAME, paper_gru, paper_mlp

SEEDS = 200


@functools.cache
def _model() -> tuple[nn.Module, torch.Tensor]:
    """120 states whose spectrum falls slowly, so that no sketch catches it all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(24, 6)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))
    return model.double(), x.double()


@functools.cache
def _truth() -> Dense:
    return dense(*_model())


@functools.cache
def _estimates(method: str, products: int) -> tuple[Estimate, ...]:
    ntk = NTK(*_model())
    return tuple(ntk.trace(method, products, seed) for seed in range(SEEDS))


def _bias(estimates: Sequence[Estimate], truth: float) -> float:
    """Distance of the mean from the truth, in standard errors of the mean."""
    values = np.array([estimate.value for estimate in estimates])
    return float((values.mean() - truth) / (values.std(ddof=1) / math.sqrt(len(values))))


def _honesty(estimates: Sequence[Estimate]) -> float:
    """The reported standard error over the observed spread."""
    reported = np.array([estimate.stderr for estimate in estimates], dtype=float)
    return float(np.sqrt((reported**2).mean()) / np.std([e.value for e in estimates], ddof=1))


METHODS = [
    ("hutch++", 15), ("hutch++", 48), ("rhutch", 12), ("rhutch", 40), ("fhutch", 12), ("fhutch", 40),
    ("per-sample", 8),
]  # fmt: skip
each_method = pytest.mark.parametrize(("method", "products"), METHODS)


@each_method
def test_estimates_are_unbiased(method: str, products: int) -> None:
    assert abs(_bias(_estimates(method, products), _truth().trace)) < 4


@each_method
def test_the_reported_error_is_the_observed_spread(method: str, products: int) -> None:
    assert _honesty(_estimates(method, products)) == pytest.approx(1, abs=0.25)


@each_method
def test_products_are_those_that_were_asked_for(method: str, products: int) -> None:
    costs = {max(estimate.cost.vjps, estimate.cost.jvps) for estimate in _estimates(method, products)[:3]}
    assert costs == {products}


def test_more_products_make_a_smaller_error() -> None:
    for (method, few), (same, many) in itertools.pairwise(METHODS[:6]):
        if method == same:
            assert _spread(method, many) < _spread(method, few)


def _spread(method: str, products: int) -> float:
    return float(np.std([estimate.value for estimate in _estimates(method, products)], ddof=1))


def test_a_tilted_estimator_would_be_caught() -> None:
    estimates = _estimates("hutch++", 48)
    tilt = 6 * np.std([e.value for e in estimates]) / math.sqrt(SEEDS)
    tilted = [Estimate(estimate.value + tilt, estimate.stderr) for estimate in estimates]
    assert abs(_bias(tilted, _truth().trace)) > 4
    for factor in (0.6, 1.6):
        wrong = [Estimate(estimate.value, factor * float(estimate.stderr or 0)) for estimate in estimates]
        assert _honesty(wrong) != pytest.approx(1, abs=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "products"), [("hutch++", 60), ("rhutch", 30), ("fhutch", 30)])
def test_estimates_of_the_papers_mlp(method: str, products: int) -> None:
    ntk = NTK(*paper_mlp())
    estimates = [ntk.trace(method, products, seed) for seed in range(SEEDS)]
    assert abs(_bias(estimates, 2314.2322)) < 4
    assert _honesty(estimates) == pytest.approx(1, abs=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "products"), [("rhutch", 10), ("per-sample", 4)])
def test_estimates_of_the_papers_gru(method: str, products: int) -> None:
    model, x = paper_gru()
    ntk = NTK(model, x, outputs=lambda y: y[0], batch_dim=1)
    estimates = [ntk.trace(method, products, seed) for seed in range(40)]
    assert abs(_bias(estimates, 223_056.46)) < 4


# The same seed gives the same estimate, however the work is cut.

OPTIONS = [{"chunk_size": 1}, {"chunk_size": 3}, {"chunk_size": 1000}, {"memory": 4000}]
PAPER = ("hutch++", "rhutch", "fhutch", "per-sample")
METRICS = ("trace", "frobenius_norm", "effective_rank", "alignment", "measure")
EVERY = [(metric, method) for metric in METRICS for method in BY_METRIC[metric] if method != "exact"]


def _values(metric: str, method: str, name: str, dtype: torch.dtype, **options: int) -> list[float]:
    case = BY_NAME[name]
    ntk = case.ntk(dtype=dtype, **options)
    others = [case.ntk(1, dtype, **options)] if metric in ("alignment", "measure") else []
    if metric == "measure":
        found = ntk.measure(others, method, products=26, seed=5)
        return [estimate.value for _, estimate in found.rows()]
    return [getattr(ntk, metric)(*others, method=method, products=26, seed=5).value]


@pytest.mark.parametrize(
    ("metric", "method", "name"),
    [(*pair, "mlp") for pair in EVERY] + [("trace", m, "lstm-batch-first") for m in PAPER],
)
def test_the_same_seed_gives_the_same_estimate_for_every_chunk_size(
    metric: str, method: str, name: str
) -> None:
    usual = _values(metric, method, name, torch.float64)
    # Another budget may make "auto" take another way.
    for options in OPTIONS[:3] if method == "auto" else OPTIONS:
        assert _values(metric, method, name, torch.float64, **options) == pytest.approx(usual, rel=1e-5)


@pytest.mark.parametrize("method", PAPER)
def test_chunk_sizes_do_not_matter_in_single_precision(method: str) -> None:
    usual = _values("trace", method, "cnn-batch-norm-eval", torch.float32)
    for options in OPTIONS:
        found = _values("trace", method, "cnn-batch-norm-eval", torch.float32, **options)
        assert found == pytest.approx(usual, rel=1e-5)
