"""Options: how far to go, given whole or by keyword; and the names that type checkers know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch

from ntkscope import NTK, Estimate, Options, estimators, measure_all
from ntkscope.measure import METHODS
from ntkscope.metrics import METRICS
from ntkscope.settings import (
    Method,
    TraceMethod,
    TraceSource,
    check_chunk_size,
    check_minimum,
    options_of,
    parse_memory,
)
from ntkscope.ways.table import methods_of

MATRIX = 1.0 / (1 + np.arange(40)[:, None] + np.arange(40))


def _kernel(scale: float) -> NTK:
    layer = torch.nn.Linear(3, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12.0).reshape(4, 3) * scale)
        layer.bias.zero_()
    model = torch.nn.Sequential(layer, torch.nn.Tanh())
    return NTK(model, torch.ones(3, 3, dtype=torch.float64).tril() / 20)


@pytest.fixture
def ntk() -> NTK:
    return _kernel(1.0)


# Fields and their checks.


def test_fields_and_what_they_mean() -> None:
    assert Options() == Options(rtol=None, atol=None, products=None, seed=0, progress=False)
    assert (Options().tolerance, Options().to_tolerance) == (0.01, True)
    assert (Options(rtol=0.2, atol=3.0).tolerance, Options(atol=3.0).tolerance) == (0.2, None)
    assert (Options(products=9).tolerance, Options(products=9).to_tolerance) == (None, False)


def test_it_is_frozen_and_given_by_name() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().rtol = 0.1  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Options(0.1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="unexpected keyword argument 'rtoll'"):
        Options(rtoll=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"rtol": 0}, ValueError, "rtol must be positive, found 0; use a value such as rtol=0.01"),
        ({"rtol": float("nan")}, ValueError, "rtol must be positive, found nan"),
        ({"atol": "1"}, TypeError, "atol must be a number, found '1'"),
        ({"seconds": -1.0}, ValueError, "seconds must be positive, found -1.0"),
        ({"seconds": True}, TypeError, "seconds must be a number, found True"),
        ({"products": 2.5}, TypeError, "products must be a whole number, found 2.5; pass an int"),
        ({"max_products": 0}, ValueError, "max_products=0 is too small"),
        ({"products": 9, "atol": 1.0}, ValueError, "products=9 together with rtol, atol or max_products"),
        ({"products": 9, "max_products": 9}, ValueError, "products=9 together with"),
        ({"seed": -1}, ValueError, "seed must not be negative, found -1"),
        ({"seed": 1 << 64}, ValueError, "seed must have at most 64 bits"),
        ({"seed": None}, TypeError, "seed must be an int, found None"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Options(**fields)


def test_a_budget_below_a_methods_minimum() -> None:
    check_minimum(Options(products=3), 3)
    check_minimum(Options(), 3)
    for name in ("products", "max_products"):
        with pytest.raises(ValueError, match=f"{name}=2 is too small: this method needs at least 3 products"):
            check_minimum(Options(**{name: 2}), 3)


def test_sizes() -> None:
    check_chunk_size(None)
    check_chunk_size(3)
    with pytest.raises(TypeError, match="chunk_size must be a number, found 'many'"):
        check_chunk_size("many")
    with pytest.raises(ValueError, match="chunk_size must be positive, found 0"):
        check_chunk_size(0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (1 << 20, 1 << 20),
        (1e9, 10**9),
        ("4GiB", 4 << 30),
        (" 1.5 gb ", 1_500_000_000),
        ("512M", 512_000_000),
        ("512 MiB", 512 << 20),
        ("2Ti", 2 << 40),
        ("100", 100),
        ("3kB", 3000),
        (".5KiB", 512),
    ],
)
def test_sizes_of_memory(given: Any, expected: int | None) -> None:
    assert parse_memory(given) == expected


@pytest.mark.parametrize("given", ["a lot", "4 parsecs", "GiB", "-1GiB", "1.2.3GiB", "", "4 Gi B"])
def test_texts_that_are_no_sizes(given: str) -> None:
    with pytest.raises(ValueError, match="is no size; write a number with B, KiB, MiB, GiB or TiB"):
        parse_memory(given)


@pytest.mark.parametrize("given", [0, -5, "0GiB", float("inf"), float("nan")])
def test_sizes_that_leave_no_room(given: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a byte or more"):
        parse_memory(given)


@pytest.mark.parametrize("given", [True, [1], b"4GiB"])
def test_what_is_no_memory(given: Any) -> None:
    with pytest.raises(TypeError, match="memory must be bytes or a text"):
        parse_memory(given)


# Whole and by keyword.


def test_a_keyword_takes_the_place_of_a_field() -> None:
    whole = Options(rtol=0.1, seconds=9.0, seed=4)
    assert options_of(whole, None, None, {}) == whole
    assert options_of(whole, None, 0, {"rtol": 0.2}) == Options(rtol=0.2, seconds=9.0, seed=0)
    assert options_of(None, 30, None, {}) == Options(products=30)
    assert whole == Options(rtol=0.1, seconds=9.0, seed=4)
    with pytest.raises(ValueError, match="products=30 together with"):
        options_of(whole, 30, None, {})
    with pytest.raises(TypeError, match=r"options must be ntkscope.Options, found 0.1; pass Options"):
        options_of(0.1, None, None, {})  # type: ignore[arg-type]


VERBS: dict[str, Callable[[NTK], Callable[..., Any]]] = {
    "trace": lambda ntk: ntk.trace,
    "frobenius_norm": lambda ntk: ntk.frobenius_norm,
    "effective_rank": lambda ntk: ntk.effective_rank,
    "alignment": lambda ntk: lambda **options: ntk.alignment(_kernel(3.0), **options),
    "metric": lambda ntk: lambda **options: ntk.metric("inner_product", _kernel(3.0), **options),
    "measure": lambda ntk: lambda **options: ntk.measure(**options).trace,
    "measure_all": lambda ntk: lambda **options: measure_all([ntk], **options)[0].trace,
    "estimators": lambda ntk: lambda **options: estimators.trace(MATRIX, **options),
    "estimators.measure": lambda ntk: lambda **options: estimators.measure(MATRIX, **options).trace,
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_them_whole_and_by_keyword(verb: str, ntk: NTK) -> None:
    call = VERBS[verb](ntk)
    method = {} if verb.startswith("estimators") else {"method": "gram"}
    usual = call(products=8, seed=5, **method)
    whole = Options(products=8, seed=5)
    assert call(options=whole, **method).value == usual.value
    other = call(options=whole, seed=6, **method)
    assert other.seed == 6
    assert other.value == call(products=8, seed=6, **method).value != usual.value
    with pytest.raises(TypeError, match="unknown option 'rtoll'; the options are rtol, atol, products"):
        call(rtoll=0.1)
    with pytest.raises(TypeError, match=r"options must be ntkscope.Options, found \{'rtol': 0.1\}"):
        call(options={"rtol": 0.1})


def test_progress_is_an_option(ntk: NTK) -> None:
    calls: list[int] = []

    def progress(estimate: Estimate, spent: int, budget: int | None) -> None:
        calls.append(spent)

    ntk.trace("rhutch", options=Options(products=5, progress=progress))
    assert calls == [5]


# Names that type checkers know.


def test_literal_types_are_what_the_ways_offer() -> None:
    of_all = set.intersection(*(set(METHODS[name]) for name in (*METRICS, "measure")))
    assert set(get_args(Method)) == of_all
    assert set(get_args(TraceMethod)) == set(methods_of("trace"))
    assert {*get_args(Method)} <= {*get_args(TraceMethod)}
    assert set(get_args(TraceSource)) == {"exact", "per-sample", "per-sample-forward"}
    for metric in METRICS:
        offered = get_args(TraceMethod if metric == "trace" else Method)
        assert set(offered) == set(METHODS[metric])
