"""Metrics are lines of a table: monomials of moments, whatever the moments came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from ntkscope import NTK, Cost, Estimate, Measurement, Measurements, estimators, measure_all
from ntkscope.metrics import METRICS, STANDARD, evaluate, kernels_of, moments_of
from ntkscope.runs.moments import Moments, MomentSource
from ntkscope.runs.sources import IndependentMoments, TraceFromElsewhere
from ntkscope.ways.table import methods_of

# One line each: of one kernel, and of two.
STABLE_TRACE = {(0,): 1.0, (0, 0): -0.5}
PROJECTION = {(0, 1): 1.0, (1, 1): -1.0}


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "stable_trace", STABLE_TRACE)
    monkeypatch.setitem(METRICS, "projection", PROJECTION)


def _ntk(seed: int = 0) -> NTK:
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return NTK(model, x)


def _truth(metric: str, kernel: Any, other: Any = None) -> float:
    kernels = [np.asarray(one) for one in (kernel, other) if one is not None]
    return math.prod(
        float(np.trace(kernels[m[0]] if len(m) == 1 else kernels[m[0]] @ kernels[m[1]])) ** power
        for m, power in METRICS[metric].items()
    )


def _covers(estimate: Estimate, truth: float) -> bool:
    low, high = estimate.interval(0.9999)
    return low <= truth <= high and estimate.stderr != 0


# A metric more.


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("metric", ["stable_trace", "projection"])
def test_a_new_metric_by_every_method_of_a_kernel(metric: str) -> None:
    ntk, other = _ntk(0), _ntk(1)
    others = [other] * (kernels_of(metric) - 1)
    truth = _truth(metric, ntk.to_dense(), other.to_dense())
    assert methods_of(metric) == methods_of("frobenius_norm")
    for method in methods_of(metric):
        budget = {} if method in ("auto", "exact") else {"products": 30}
        found = ntk.metric(metric, *others, method=method, **budget)  # type: ignore[arg-type]
        assert found.quantity == metric
        if found.stderr == 0:
            assert found.value == pytest.approx(truth, rel=1e-9)
        else:
            assert method not in ("auto", "exact")
            assert _covers(found, truth)


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("method", ["exact", "gram"])
def test_a_new_metric_among_others(method: Any) -> None:
    ntk, other = _ntk(0), _ntk(1)
    budget = {} if method == "exact" else {"products": 60}
    names = ("projection", "stable_trace", "trace")
    found = ntk.measure([other, ntk], method, metrics=names, **budget)
    assert list(found) == ["stable_trace", "trace", "projection"]
    assert found["stable_trace"] is found.stable_trace  # type: ignore[attr-defined]
    assert len(found["projection"]) == 2
    rows = ["stable trace", "trace", "projection[0]", "projection[1]"]
    assert [name for name, _ in found.rows()] == rows
    assert [line.split("  ")[0] for line in str(found).splitlines()] == [*rows, "together"]
    kernel = ntk.to_dense()
    truths = [_truth("stable_trace", kernel), _truth("trace", kernel)]
    truths += [_truth("projection", kernel, matrix) for matrix in (other.to_dense(), kernel)]
    for (_, estimate), truth in zip(found.rows(), truths, strict=True):
        if method == "exact":
            assert (estimate.stderr, estimate.value) == (0, pytest.approx(truth, rel=1e-9))
        else:
            assert truth == pytest.approx(1) or _covers(estimate, truth)
    assert Measurement.from_dict(found.to_dict()) == found


@pytest.mark.usefixtures("added")
def test_a_new_metric_of_several_kernels() -> None:
    kernels = [_ntk(seed) for seed in range(3)]
    found = measure_all(kernels, "exact", metrics=("stable_trace", "projection"))
    dense = [kernel.to_dense() for kernel in kernels]
    for a, one in enumerate(found):
        assert one["stable_trace"].value == pytest.approx(_truth("stable_trace", dense[a]), rel=1e-9)
        others = [dense[b] for b in range(3) if b != a]
        for estimate, matrix in zip(one["projection"], others, strict=True):
            assert estimate.value == pytest.approx(_truth("projection", dense[a], matrix), rel=1e-9)
    assert Measurements.from_dict(found.to_dict()) == found
    assert "alignment_matrix" not in found.to_dict()


@pytest.mark.usefixtures("added")
def test_a_new_metric_of_matrices() -> None:
    generator = np.random.default_rng(0)
    one, other = (factor @ factor.T for factor in generator.standard_normal((2, 30, 10)))
    metrics = ("stable_trace", "projection")
    exact = estimators.measure(one, [other], "exact", metrics=metrics)
    found = estimators.measure(one, [other], "sketch", products=24, metrics=metrics)
    assert exact["stable_trace"].value == pytest.approx(_truth("stable_trace", one))
    assert exact["projection"][0].value == pytest.approx(_truth("projection", one, other))
    assert _covers(found["stable_trace"], exact["stable_trace"].value)
    assert _covers(found["projection"][0], exact["projection"][0].value)
    together = estimators.measure_all([one, other], "exact", metrics=metrics)
    assert together[0]["projection"][0].value == exact["projection"][0].value


@pytest.mark.usefixtures("added")
def test_a_new_metric_is_planned() -> None:
    assert _ntk().plan("stable_trace").quantity == "stable_trace"
    assert _ntk().plan("projection", [_ntk(1)]).choice.exact


@pytest.mark.parametrize(
    ("faulty", "error", "message"),
    [
        (lambda: _ntk().metric("stable_rank"), ValueError, "unknown metric 'stable_rank'; choose one of 'tr"),
        (lambda: _ntk().measure(metrics=("trace", "rank")), ValueError, "unknown metric 'rank'; choose from"),
        (lambda: _ntk().measure(metrics=()), ValueError, "unknown metric none; choose from 'trace'"),
        (
            lambda: _ntk().measure(metrics="trace"),
            TypeError,
            r"several names, found 'trace'; pass \(",
        ),
        (lambda: measure_all([_ntk()], metrics=["rank"]), ValueError, "unknown metric 'rank'"),
        (lambda: estimators.measure(np.eye(2), metrics=["rank"]), ValueError, "unknown metric 'rank'"),
        (lambda: _ntk().plan("rank"), ValueError, "unknown metric 'rank'; choose one of 'trace'"),
        (lambda: _ntk().metric("alignment"), ValueError, "alignment takes 2 kernels, found 1"),
        (lambda: _ntk().metric("trace", _ntk()), ValueError, "trace takes 1 kernels, found 2"),
    ],
)
def test_unknown_metrics(faulty: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        faulty()


def test_the_standard_metrics_are_in_the_table() -> None:
    assert set(STANDARD) < set(METRICS)
    assert list(_ntk().measure(method="exact")) == list(STANDARD)
    assert {metric: kernels_of(metric) for metric in METRICS} == {
        "trace": 1, "frobenius_norm": 1, "effective_rank": 1, "inner_product": 2, "alignment": 2,
    }  # fmt: skip


def test_the_moments_that_metrics_need() -> None:
    assert moments_of([("trace", (0,))]) == ((0,),)
    assert moments_of([("effective_rank", (2,)), ("trace", (2,))]) == ((2,), (2, 2))
    # Pairs are symmetric, and what two metrics share is needed once.
    both = moments_of([("alignment", (0, 1)), ("alignment", (1, 0))])
    assert both == ((0, 0), (0, 1), (1, 1))


# The evaluation, for every source of moments.

TRACES, INNER = np.array([3.0, 5.0]), np.array([[4.0, 2.0], [2.0, 16.0]])
VALUES = {
    "trace": 3.0,
    "frobenius_norm": 2.0,
    "effective_rank": 9 / 4,
    "inner_product": 2.0,
    "alignment": 2.0 / (2 * 4),
}


def _samples(value: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((20, *value.shape)) / 10
    return value + noise - noise.mean(axis=0)


def _independent(stderr: float | None) -> IndependentMoments:
    moments = {(a,): TRACES[a] for a in range(2)} | {
        (a, b): INNER[a, b] for a in range(2) for b in range(a, 2)
    }
    return IndependentMoments(
        {moment: Estimate(float(value), stderr, degrees_of_freedom=9) for moment, value in moments.items()}
    )


SOURCES: dict[str, MomentSource] = {
    "exact": Moments(TRACES, INNER),
    "samples": Moments(TRACES, INNER, _samples(TRACES, 0), _samples(INNER, 1)),
    "independent": _independent(0.1),
    "independent-exact": _independent(0.0),
    "trace-from-elsewhere": TraceFromElsewhere(_independent(0.1), Estimate(3.0, 0.2, "per-sample")),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_every_metric(name: str, metric: str) -> None:
    kernels = (0, 1)[: kernels_of(metric)]
    found = evaluate(SOURCES[name], metric, kernels, method="m", cost=Cost(7), seed=4)
    assert found.value == pytest.approx(VALUES[metric], rel=1e-12)
    assert (found.quantity, found.cost) == (metric, Cost(7))
    assert (found.stderr == 0) == ("exact" in name)
    assert found.seed == (None if "exact" in name else 4)


def test_errors_travel_through_powers() -> None:
    def relative(metric: str) -> float:
        found = evaluate(SOURCES["independent"], metric, method="m", cost=Cost())
        assert found.relative_stderr is not None
        return found.relative_stderr

    assert relative("trace") == pytest.approx(0.1 / 3)
    assert relative("frobenius_norm") == pytest.approx(0.5 * 0.1 / 4)
    assert relative("effective_rank") == pytest.approx(math.hypot(2 * 0.1 / 3, 0.1 / 4))
    assert relative("alignment") == pytest.approx(math.hypot(0.05 / 4, 0.1 / 2, 0.05 / 16))


def test_paired_samples_keep_their_correlation() -> None:
    # tr K and ‖K‖_F² that move together: the effective rank does not move at all.
    factor = np.linspace(0.99, 1.01, 9)
    source = Moments(np.ones(1), np.ones((1, 1)), factor[:, None], (2 * factor - 1)[:, None, None])
    assert evaluate(source, "trace", method="m", cost=Cost()).stderr > 1e-4
    assert evaluate(source, "effective_rank", method="m", cost=Cost()).stderr < 1e-14


def test_a_trace_from_elsewhere_is_named() -> None:
    source = SOURCES["trace-from-elsewhere"]
    methods = {
        metric: evaluate(source, metric, method="sketch", cost=Cost()).method
        for metric in ("trace", "effective_rank", "frobenius_norm")
    }
    assert methods == {
        "trace": "per-sample",
        "effective_rank": "sketch, trace by per-sample",
        "frobenius_norm": "sketch",
    }


def test_what_is_not_defined_says_so() -> None:
    zero: Mapping[str, MomentSource] = {
        "exact": Moments(np.zeros(2), np.zeros((2, 2))),
        "independent": IndependentMoments(
            {moment: Estimate(0.0, None) for moment in ((0,), (0, 0), (0, 1), (1, 1))}
        ),
    }
    for source in zero.values():
        for metric in ("effective_rank", "alignment"):
            found = evaluate(source, metric, method="m", cost=Cost())
            assert math.isnan(found.value)
            assert found.note == f"the {metric.replace('_', ' ')} of a zero kernel is not defined"
        assert evaluate(source, "frobenius_norm", method="m", cost=Cost()).value == 0
    negative = IndependentMoments({(0, 0): Estimate(-1.0, 0.5)})
    found = evaluate(negative, "frobenius_norm", method="m", cost=Cost())
    assert (found.value, found.stderr) == (0, None)
    assert "came out negative; spend more products" in found.note
