"""Cost and Estimate: what every method returns, for people, for programs and for files."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ntkscope import Cost, Estimate
from ntkscope.results import student_t_quantile


@pytest.mark.parametrize("freedom", [0.7, 1, 1.5, 2, 4, 9.5, 30, 59.9, 60, 200, 1e4, math.inf])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_student_t_quantiles(probability: float, freedom: float) -> None:
    expected = stats.norm.ppf(probability) if math.isinf(freedom) else stats.t.ppf(probability, freedom)
    assert student_t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


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


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(2**-52, "2314.232"), (2**-23, "2314.232"), (2**-10, "2.31e+03"), (2**-7, "2.3e+03"), (0.0, "2314.232")],
)
def test_exact_values_have_the_digits_of_their_products(epsilon: float, text: str) -> None:
    estimate = Estimate(2314.2322, 0.0, epsilon=epsilon)
    assert estimate.value_text() == text
    assert Estimate.from_dict(json.loads(json.dumps(estimate.to_dict()))).epsilon == epsilon
    assert float(estimate) == 2314.2322


def test_what_earlier_versions_wrote_has_no_rounding() -> None:
    data = Estimate(1.0, 0.0).to_dict()
    del data["epsilon"]
    assert Estimate.from_dict(data) == Estimate(1.0, 0.0)


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
    assert data["degrees_of_freedom"] == 2.0
    assert Estimate(1.0).to_dict()["interval95"] is None
    assert Estimate(1.0).to_dict()["degrees_of_freedom"] is None


FULL = Estimate(2.0, 0.5, "rhutch", "trace", np.ones(3), 2.5, Cost(0, 3, 1, 0.1), 4, "note", True)
ROUND = {
    "full": FULL,
    "default": Estimate(1.0),
    "exact": Estimate(1.0, 0.0),
    "nan": Estimate(math.nan, math.nan, degrees_of_freedom=math.nan),
    "inf": Estimate(math.inf, math.inf, degrees_of_freedom=math.inf),
    "minus-inf": Estimate(-math.inf, 1.0, cost=Cost(seconds=math.inf)),
    "not-converged": Estimate(1.0, 0.1, converged=False, seed=0),
    "large-seed": Estimate(1.0, 0.1, seed=(1 << 64) - 1),
    "numpy": Estimate(np.float64(1.5), np.float32(0.5), seed=np.int64(7), converged=np.bool_(True)),
}


@pytest.mark.parametrize("estimate", ROUND.values(), ids=ROUND.keys())
def test_from_dict_is_inverse_to_to_dict(estimate: Estimate) -> None:
    for data in (estimate.to_dict(), json.loads(json.dumps(estimate.to_dict(), allow_nan=False))):
        found = Estimate.from_dict(data)
        assert found == estimate
        assert hash(found) == hash(estimate)
        for field in dataclasses.fields(Estimate):
            if field.name != "samples":
                np.testing.assert_equal(getattr(found, field.name), getattr(estimate, field.name))
        assert found.samples is None
        assert Cost.from_dict(data["cost"]) == estimate.cost


def test_what_is_not_finite_is_null_and_named() -> None:
    data = Estimate(math.nan, math.inf).to_dict()
    assert (data["value"], data["stderr"], data["degrees_of_freedom"]) == (None, None, None)
    assert data["not_finite"] == {"value": "nan", "stderr": "inf"}
    assert "not_finite" not in Estimate(1.0).to_dict()


CHANGES = [
    {"value": 2.1}, {"stderr": None}, {"method": "exact"}, {"quantity": "norm"}, {"cost": Cost(1)},
    {"degrees_of_freedom": 3.0}, {"seed": None}, {"note": ""}, {"converged": None},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_equality_is_of_every_field(change: dict[str, Any]) -> None:
    assert dataclasses.replace(FULL, **change) != FULL


def test_equality_leaves_the_samples_out() -> None:
    assert dataclasses.replace(FULL, samples=None) == FULL
    assert FULL != 2.0
    assert Estimate(math.nan) == Estimate(float("nan"))
    assert pickle.loads(pickle.dumps(FULL)) == copy.deepcopy(FULL) == FULL


BROKEN: dict[str, tuple[Any, str]] = {
    "no-dict": ([1], r"an estimate must be a dict, found \[1\]; pass what to_dict\(\) returned"),
    "nothing": ({}, "an estimate lacks the field 'degrees_of_freedom'; its fields are none"),
    "value-missing": ({"value": ...}, "an estimate lacks the field 'value'; its fields are 'quantity', "),
    "value-null": ({"value": None}, "the field 'value' None, expected a number .*'not_finite'"),
    "value-text": ({"value": "2"}, "the field 'value' '2', expected a number or null"),
    "value-flag": ({"value": True}, "the field 'value' True, expected a number or null"),
    "stderr": ({"stderr": [1]}, r"the field 'stderr' \[1\], expected a number or null"),
    "freedom": ({"degrees_of_freedom": "inf"}, "the field 'degrees_of_freedom' 'inf', expected a number"),
    "method": ({"method": None}, "the field 'method' None, expected a text"),
    "quantity": ({"quantity": 3}, "the field 'quantity' 3, expected a text"),
    "seed": ({"seed": 1.5}, "the field 'seed' 1.5, expected a whole number"),
    "seed-flag": ({"seed": True}, "the field 'seed' True, expected a whole number"),
    "note": ({"note": ...}, "lacks the field 'note'"),
    "converged": ({"converged": "yes"}, "the field 'converged' 'yes', expected true, false or null"),
    "cost": ({"cost": None}, "a cost must be a dict, found None"),
    "cost-field": ({"cost": {"products": 1}}, "a cost lacks the field 'vjps'; its fields are 'products'"),
    "not-finite": ({"value": None, "not_finite": {"value": "big"}}, "the field 'not_finite' .*'nan', 'inf'"),
    "not-finite-text": ({"value": None, "not_finite": "inf"}, "a dict of 'nan'"),
    "long": ({"note": list(range(99))}, r"the field 'note' .{57}\.\.\., expected a text"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_dicts_name_the_field(change: Any, message: str) -> None:
    data = change
    if isinstance(change, dict) and change:
        data = {name: value for name, value in (FULL.to_dict() | change).items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        Estimate.from_dict(data)


def test_costs_add() -> None:
    a, b = Cost(1, 2, 3, 4.0), Cost(10, 20, 30, 40.0)
    assert a + b == Cost(11, 22, 33, 44.0)
    assert b - a == Cost(9, 18, 27, 36.0)


def test_html_is_escaped() -> None:
    html = Estimate(1.0, None, "a <b>", "frobenius_norm")._repr_html_()
    assert "a &lt;b&gt;" in html
    assert "<b>a" not in html
    assert "frobenius norm" in html
