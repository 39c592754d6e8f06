"""An estimate is a number where that is safe, and says so where it is not."""

from __future__ import annotations

import importlib.util
import math
import numbers
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ntkscope import Estimate

E = Estimate(200.0, 4.0, "sketch", "trace", np.array([190.0, 210.0]), 5.0, seed=3, converged=True)


def test_format_takes_the_value_and_without_a_format_all_that_is_known() -> None:
    assert f"{E:.1f} {E:8.3g}|{E:,.0f}" == "200.0      200|200"
    assert f"{E}" == str(E)
    assert f"{E:.2e}" == "2.00e+02"
    with pytest.raises(ValueError, match="format code"):
        f"{E:d}"


def test_round() -> None:
    assert (round(Estimate(2.567)), round(Estimate(2.567), 1)) == (3, 2.6)
    assert isinstance(round(E), int)
    assert math.sqrt(Estimate(4.0)) == 2.0


@pytest.mark.parametrize("convert", [int, float, np.float64, np.float32, np.int64, Estimate])
def test_comparison(convert: Any) -> None:
    low, same, high = convert(100), convert(200), convert(300)
    assert low < E < high
    assert low <= E <= high
    assert same <= E <= same
    assert high > E > low
    assert not same > E
    assert not same < E


def test_order_of_estimates_is_that_of_their_values() -> None:
    three = [Estimate(float(x)) for x in (3, 1, 2)]
    assert [e.value for e in sorted(three)] == [1.0, 2.0, 3.0]
    assert max(three) is three[0]
    with pytest.raises(TypeError, match="not supported"):
        operator.lt(E, "200")


def test_equality_is_not_that_of_the_value() -> None:
    assert E != 200.0
    assert Estimate(200.0) != E


def test_arithmetic_with_plain_numbers_keeps_the_error() -> None:
    cases = {
        "2 * trace": (2 * E, 400.0, 8.0),
        "trace * -2": (E * -2, -400.0, 8.0),
        "trace / 100": (E / 100, 2.0, 0.04),
        "trace + 1": (E + 1, 201.0, 4.0),
        "1 + trace": (1 + E, 201.0, 4.0),
        "trace - 1": (E - 1, 199.0, 4.0),
        "1 - trace": (1 - E, -199.0, 4.0),
        "-trace": (-E, -200.0, 4.0),
        "(2 * trace) + 1": (2 * E + 1, 401.0, 8.0),
    }
    for words, (found, value, stderr) in cases.items():
        assert isinstance(found, Estimate)
        assert (found.quantity, found.value, found.stderr) == (words, value, pytest.approx(stderr))
        assert found.samples is not None
        assert found.samples.mean() == pytest.approx(value)
        # A tolerance was asked for of the number itself.
        assert found.converged is None
        assert (found.method, found.seed, found.degrees_of_freedom) == ("sketch", 3, 5.0)
    assert abs(-E).value == 200.0
    assert +E is E
    assert (Estimate(3.0) / 2).stderr is None
    assert (Estimate(3.0, 0.0) / 2).stderr == 0


def test_rounding_is_a_larger_part_of_a_smaller_difference() -> None:
    single = Estimate(1000.0, 0.0, epsilon=2.0**-23)
    assert (single * 3).epsilon == single.epsilon
    assert (single - 999).epsilon == pytest.approx(1000 * single.epsilon)
    assert (single - 1000).epsilon == 1.0
    assert (single - 999).value_text() == "1"


@pytest.mark.parametrize("two", [np.float64(2), np.float32(2), np.int64(2)])
def test_numpy_scalars_are_plain_numbers_on_both_sides(two: Any) -> None:
    for found, value, stderr in (
        (two * E, 400.0, 8.0), (E * two, 400.0, 8.0), (E / two, 100.0, 2.0),
        (two + E, 202.0, 4.0), (two - E, -198.0, 4.0), (E - two, 198.0, 4.0),
    ):  # fmt: skip
        assert isinstance(found, Estimate)
        assert (found.value, found.stderr) == (value, stderr)


def test_numpy_takes_the_values() -> None:
    both = [E, Estimate(100.0)]
    assert np.asarray(both).dtype == np.float64
    assert (np.mean(both), np.max(both), np.std(both)) == (150.0, 200.0, 50.0)
    assert np.log10(Estimate(100.0)) == 2.0
    assert not np.isnan(E)
    np.testing.assert_allclose(both, [200.0, 100.0])
    np.testing.assert_array_equal(np.array([1.0, 2.0]) * E, [200.0, 400.0])
    np.testing.assert_array_equal(np.array([100.0, 300.0]) < E, [True, False])
    assert np.array(E, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="leave copy=False out"):
        E.__array__(copy=False)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv"])
def test_two_estimates_are_not_combined(name: str) -> None:
    with pytest.raises(TypeError, match=r"may come from the same probes; .* such as float\(a\) / float\(b\)"):
        getattr(operator, name)(E, Estimate(1.0))


def test_what_is_not_linear_has_a_remedy() -> None:
    with pytest.raises(TypeError, match=r"divide the value, 1 / float\(estimate\)"):
        1 / E
    for operation in (lambda: E**2, lambda: E * "2", lambda: E + None, lambda: [1.0] * E, lambda: 1j * E):
        with pytest.raises(TypeError):
            operation()


def test_tensorboard_can_draw_it() -> None:
    # The converter that SummaryWriter.add_scalar calls, without the tensorboard package around it.
    path = Path(torch.__file__).parent / "utils" / "tensorboard" / "_convert_np.py"
    spec = importlib.util.spec_from_file_location("convert_np", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.make_np(E).squeeze().tolist() == 200.0
    assert isinstance(E, numbers.Number)
    assert np.isscalar(E)
