"""What is read out of the measurements, on curves whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from ntkscope.apps.paper.analysis import (
    baseline_seconds,
    behind,
    best_speedup,
    falling,
    median_speedup,
    time_to,
)
from ntkscope.apps.paper.store import Results, Row

SETTINGS = {"quick": False, "fixed": {}}


def _row(method: str, setting: float, repeat: int, error: float, seconds: float, scale: float = 1) -> Row:
    return Row("mlp", method, "trace", setting, repeat, 0, 1.0, error, seconds, scale, 3, 4)


def _results(*rows: Row) -> Results:
    return Results(SETTINGS, [_row("ntk-products", 10, 0, np.nan, 2.0, 50), *rows])


def test_the_baseline_is_scaled() -> None:
    assert baseline_seconds(_results(), "mlp", "trace") == 100
    with pytest.raises(ValueError, match="n NTK products of 'gru' were not measured"):
        baseline_seconds(_results(), "gru", "trace")


def test_each_repetition_takes_its_quickest_method() -> None:
    results = _results(
        _row("hutch++", 6, 0, 1e-1, 1.0), _row("hutch++", 12, 0, 1e-3, 2.0),
        _row("rhutch", 6, 0, 1e-2, 0.5), _row("rhutch", 12, 0, 9e-3, 5.0),
    )  # fmt: skip
    found = best_speedup(results, "mlp", np.array([1e-2, 1e-3, 1e-4])).median
    assert found == pytest.approx([100 / 0.5, 100 / 2, 0])


def test_times_between_budgets_are_interpolated() -> None:
    results = _results(_row("hutch++", 6, 0, 0.3, 1.0), _row("hutch++", 12, 0, 0.1, 3.0))
    assert best_speedup(results, "mlp", np.array([0.2])).median == pytest.approx([100 / 2])


def test_repetitions_without_large_budgets_do_not_count_where_those_decide() -> None:
    """A lucky small budget must not stand for the repetitions that could not get there."""
    rows = [_row("hutch++", 6, repeat, 1e-2, 1.0) for repeat in range(4)]
    lucky = _row("hutch++", 6, 3, 1e-6, 1.0)
    results = _results(*rows[:3], lucky, _row("hutch++", 12, 0, 1e-6, 4.0))
    found = best_speedup(results, "mlp", np.array([1e-2, 1e-5])).median
    assert found[0] == pytest.approx(100)
    assert found[1] == pytest.approx(100 / 4, rel=1e-3)


def test_the_median_rule_does_not_reward_luck() -> None:
    rows = [_row("hutch++", 6, r, error, 1.0) for r, error in enumerate((1e-6, 1e-2, 1e-2))]
    rows += [_row("hutch++", 12, r, 1e-4, 2.0) for r in range(3)]
    found = median_speedup(_results(*rows), "mlp", np.array([1e-2, 1e-3, 1e-5]))
    assert found[:2] == pytest.approx([100, 50])
    assert np.isnan(found[2])


def test_time_to_an_accuracy_is_that_of_the_quickest_budget() -> None:
    curve = _results(_row("hutch++", 6, 0, 1e-3, 3.0), _row("hutch++", 12, 0, 1e-4, 2.0)).curve(
        "mlp", "hutch++", "trace"
    )
    assert curve is not None
    target = time_to(curve, 1e-3)
    assert target is not None
    assert (target.setting, target.seconds, target.vjps, target.jvps) == (12, 2.0, 3, 4)
    assert time_to(curve, 1e-5) is None


def test_points_that_none_of_ours_beats_are_named() -> None:
    results = _results(
        _row("hutch++", 6, 0, 1e-2, 1.0), _row("rhutch", 6, 0, 1e-3, 0.1), _row("per-sample", 1, 0, 5e-3, 0.5)
    )
    found = behind(results, "mlp", "trace")
    assert found.points == 2
    assert [(point.method, point.setting) for point in found.ahead] == [("rhutch", 6)]


def test_the_exponent_of_a_curve() -> None:
    curve = _results(*(_row("rhutch", m, 0, m**-0.5, 1.0) for m in (6, 24, 96))).curve(
        "mlp", "rhutch", "trace"
    )
    assert curve is not None
    assert falling(curve) == pytest.approx(-0.5)
