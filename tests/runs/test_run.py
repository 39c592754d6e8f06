import numpy as np
import pytest

from ntkscope.results import Estimate, Measurement
from ntkscope.runs.drive import drive, estimates_of, is_within
from ntkscope.runs.exact import ExactRun
from ntkscope.runs.hutchinson import HutchinsonRun
from ntkscope.settings import Options


class Clock:
    """A clock that a run moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def noisy(scale=0.1, *, clock=None, fail_after=None):
    """A run of samples 1 ± scale; every sample takes one second."""
    numbers = 1 + scale * np.random.default_rng(0).normal(size=10_000)

    def draw(start, stop):
        if fail_after is not None and stop > fail_after:
            raise KeyboardInterrupt
        if clock is not None:
            clock.now += stop - start
        return numbers[start:stop]

    return HutchinsonRun(draw, method="noisy")


def test_a_fixed_budget_is_spent():
    assert len(drive(noisy(), Options(products=77)).samples) == 77


def test_a_tolerance_is_met_by_the_error_bar():
    found = drive(noisy(), Options(rtol=0.01))
    assert found.converged
    assert is_within(found, rtol=0.01)
    assert 100 < len(found.samples) < 400
    assert drive(noisy(), Options(atol=0.05)).converged


def test_the_default_is_one_percent():
    assert len(drive(noisy()).samples) == len(drive(noisy(), Options(rtol=0.01)).samples)


def test_max_products_ends_it_and_says_so():
    found = drive(noisy(), Options(rtol=1e-4, max_products=50))
    assert len(found.samples) == 50
    assert found.converged is False
    assert "max_products=50 ended it before the tolerance was met" in str(found)


def test_seconds_end_it_and_say_so():
    clock = Clock()
    found = drive(noisy(clock=clock), Options(rtol=1e-4, seconds=60), clock=clock)
    assert 30 < clock.now <= 62
    assert found.converged is False
    assert "time budget" in found.note
    clock = Clock()
    fixed = drive(noisy(clock=clock), Options(products=5000, seconds=1), clock=clock)
    assert len(fixed.samples) < 5000
    assert "time budget" in fixed.note


@pytest.mark.parametrize("options", [{"products": 2000}, {"rtol": 1e-4}])
def test_an_interrupt_returns_what_is_known(options):
    found = drive(noisy(fail_after=1000), Options(**options))
    assert 0 < len(found.samples) <= 1000
    assert found.converged is False
    assert found.note == "interrupted"
    assert found.stderr > 0


def test_an_interrupt_before_the_first_result_is_raised():
    with pytest.raises(KeyboardInterrupt):
        drive(noisy(fail_after=0), Options(products=10))


def test_an_interrupt_from_progress_counts_too():
    def progress(estimate, spent, budget):
        if spent > 100:
            raise KeyboardInterrupt

    assert drive(noisy(), Options(products=1000), progress=progress).note == "interrupted"


def test_progress_sees_every_step():
    seen = []
    drive(noisy(), Options(rtol=0.01, max_products=500), progress=lambda *step: seen.append(step))
    assert all(isinstance(estimate, Estimate) and budget == 500 for estimate, _, budget in seen)
    assert [spent for _, spent, _ in seen] == sorted({spent for _, spent, _ in seen})


def test_exact_takes_over_where_it_is_cheaper():
    maps_cost = 40

    class Exact:
        minimum, quantum, grown = maps_cost, 1, 0

        def grow(self, products):
            self.grown = products

        def result(self):
            return Estimate(1.0, 0.0)

    assert drive(noisy(), Options(products=40), exact=Exact()).stderr == 0
    assert drive(noisy(), Options(rtol=1e-6), exact=Exact()).stderr == 0
    assert drive(noisy(), Options(products=39), exact=Exact()).stderr > 0
    limited = drive(noisy(), Options(rtol=1e-6, max_products=30), exact=Exact())
    assert limited.stderr > 0
    assert not limited.converged


def test_unfinished_exact_metrics_are_no_result():
    from ntkscope.operators.composed import as_map

    run = ExactRun([as_map(np.eye(5))])
    run.grow(3)
    with pytest.raises(ValueError, match="need all 5 columns, found 3; spend 5 products"):
        run.result()


def test_estimates_of_nested_results():
    one, two = Estimate(1.0), Estimate(2.0)
    measurement = Measurement({"trace": one}, {"alignment": [two]})
    assert estimates_of([measurement, measurement]) == [one, two, one, two]


def test_zero_is_within_an_absolute_tolerance_only():
    assert is_within(Estimate(0.0, 0.1), atol=1.0)
    assert not is_within(Estimate(0.0, 0.1), rtol=1.0)
    assert not is_within(Estimate(1.0, None), rtol=1.0)


class Scripted:
    """A run whose relative error bars at 2, 4, 6, ... products are given."""

    minimum, quantum, stride = 2, 1, 1.33

    def __init__(self, bars):
        self.bars, self.looks = bars, []

    def grow(self, products):
        self.looks.append(products)

    def result(self):
        bar = self.bars[min(self.looks[-1] // 2, len(self.bars)) - 1]
        return Estimate(1.0, bar, method="scripted")


def test_one_error_bar_that_meets_the_tolerance_ends_no_run():
    run = Scripted([0.5, 0.001, 0.2, 0.2, 0.2, 0.001])
    drive(run, Options(rtol=0.01))
    assert run.looks[:3] == [2, 4, 6]
    assert run.looks[-1] > 12


def test_two_in_a_row_do_with_the_minimum_between_them():
    run = Scripted([0.001])
    assert drive(run, Options(rtol=0.01)).converged
    assert run.looks == [2, 4]


def test_a_run_that_knows_by_itself_when_its_error_bar_holds():
    run = Scripted([0.001])
    run.first_look = 5
    assert drive(run, Options(rtol=0.01)).converged
    assert run.looks == [5]


def test_a_limit_leaves_no_room_for_a_second_look():
    run = Scripted([0.001])
    assert drive(run, Options(rtol=0.01, max_products=2)).converged
    assert run.looks == [2]
