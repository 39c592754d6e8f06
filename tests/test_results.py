"""Estimate, Cost and Measurement: what every method returns."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from ntkscope import Cost, Estimate, Measurement
from ntkscope.student import student_t_quantile


@pytest.mark.parametrize("freedom", [0.7, 1, 1.5, 2, 4, 9.5, 30, 59.9, 60, 200, 1e4, math.inf])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_student_t_quantiles(probability: float, freedom: float) -> None:
    expected = stats.norm.ppf(probability) if math.isinf(freedom) else stats.t.ppf(probability, freedom)
    assert student_t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-5)


def test_intervals() -> None:
    assert Estimate(3.0, 0.0).interval() == (3.0, 3.0)
    assert Estimate(3.0, None).interval() == (-math.inf, math.inf)
    low, high = Estimate(10.0, 2.0, degrees_of_freedom=4).interval(0.9)
    assert high - 10 == pytest.approx(2 * stats.t.ppf(0.95, 4), rel=1e-5)
    assert low + high == pytest.approx(20)
    assert Estimate(1.0, 1.0).interval(0.5)[1] < Estimate(1.0, 1.0).interval(0.95)[1]


@pytest.mark.parametrize("level", [0, 1, 95, -0.1])
def test_a_level_that_is_no_probability(level: float) -> None:
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1, found .*; use 0.95 for 95%"):
        Estimate(1.0, 1.0).interval(level)


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (2314.4, 12.3, "2314 ± 12"),
        (2314.4, 0.0123, "2314.400 ± 0.012"),
        (0.123456, 0.0012, "0.1235 ± 0.0012"),
        (2314.2322, 0.0, "2314.232"),
        (3.0, None, "3 ± unknown"),
        (1.234e9, 2.5e6, "(1.2340 ± 0.0025)e+09"),
        (1.5e-7, 2e-9, "(1.500 ± 0.020)e-07"),
        (2.0, math.inf, "2 ± inf"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (math.nan, None, "nan ± unknown"),
    ],
)
def test_value_text(value: float, stderr: float | None, text: str) -> None:
    assert Estimate(value, stderr).value_text() == text


def test_repr() -> None:
    estimate = Estimate(2314.4, 12.3, "hutch++", "trace", cost=Cost(60, 60, 60, 0.04))
    assert repr(estimate) == str(estimate) == "2314 ± 12 (hutch++, 60 products, 0.04 s)"
    assert repr(dataclasses.replace(estimate, note="interrupted")).endswith("0.04 s; interrupted)")
    assert str(Estimate(1.0, 0.0, cost=Cost(vjps=1, seconds=2.0))) == "1 (exact, 1 VJP, 2 s)"
    assert str(Cost(jvps=1200, vjps=3, seconds=0.5)) == "3 VJPs, 1,200 JVPs, 0.5 s"
    assert float(estimate) == 2314.4


def test_relative_stderr() -> None:
    assert Estimate(-10.0, 1.0).relative_stderr == pytest.approx(0.1)
    assert Estimate(5.0, 0.0).relative_stderr == 0
    assert Estimate(0.0, 0.0).relative_stderr == 0
    assert Estimate(0.0, 1.0).relative_stderr is None
    assert Estimate(5.0, None).relative_stderr is None


def test_to_dict_is_json() -> None:
    estimate = Estimate(2.0, 0.5, "rhutch", "trace", np.ones(3), 2.0, Cost(0, 3, 0, 0.1), 4, "note", True)
    data = json.loads(json.dumps(estimate.to_dict()))
    assert data["value"] == 2.0
    assert data["cost"] == {"products": 0, "vjps": 3, "jvps": 0, "seconds": 0.1}
    assert data["interval95"] == pytest.approx(estimate.interval())
    assert (data["seed"], data["converged"], data["note"]) == (4, True, "note")
    assert Estimate(1.0).to_dict()["interval95"] is None


def test_costs_add() -> None:
    a, b = Cost(1, 2, 3, 4.0), Cost(10, 20, 30, 40.0)
    assert a + b == Cost(11, 22, 33, 44.0)
    assert b - a == Cost(9, 18, 27, 36.0)


def _measurement(others: int = 2) -> Measurement:
    estimate = Estimate(2.0, 0.1, "a <b>", cost=Cost(5))
    return Measurement(estimate, estimate, None, [estimate] * others, Cost(7, seconds=1.0))


def test_measurement_rows_and_text() -> None:
    assert [name for name, _ in _measurement().rows()] == [
        "trace",
        "frobenius norm",
        "alignment 0",
        "alignment 1",
    ]
    assert [name for name, _ in _measurement(1).rows()][-1] == "alignment"
    lines = repr(_measurement(1)).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["trace", "frobenius norm", "alignment", "together"]
    assert lines[-1].endswith("7 products, 1 s")


def test_measurement_to_dict_is_json() -> None:
    data = json.loads(json.dumps(_measurement().to_dict()))
    assert data["effective_rank"] is None
    assert data["trace"]["value"] == 2.0
    assert len(data["alignment"]) == 2
    assert data["cost"]["products"] == 7


def test_html_is_escaped() -> None:
    for html in (_measurement()._repr_html_(), Estimate(1.0, None, "a <b>", "frobenius_norm")._repr_html_()):
        assert "a &lt;b&gt;" in html
        assert "<b>a" not in html
        assert "frobenius norm" in html
    assert _measurement()._repr_html_().count("<tr>") == 5
