"""Single runs: values, errors, costs, seeds and scales."""

from __future__ import annotations

import itertools

import pytest
import torch

from ntkscope.apps.paper.experiments import EXPERIMENTS, METHOD_NAMES, Cell, Experiment, paper_gru, paper_mlp
from ntkscope.apps.paper.runs import Problem, seed_of

CPU = torch.device("cpu")
METRICS = EXPERIMENTS[-1].metrics


@pytest.fixture
def problems(tiny: tuple[Experiment, ...]) -> dict[str, Problem]:
    ticks = itertools.count()
    return {e.name: Problem(e, None, CPU, clock=lambda: float(next(ticks))) for e in tiny}


def test_exact_ways_agree_and_parts_are_scaled(problems: dict[str, Problem]) -> None:
    problem = problems["mlp"]
    n, p = problem.facts["n"], problem.facts["p"]
    for method, size in (("ntk-products", n), ("n-vjps", n), ("p-jvps", p)):
        (whole,) = problem.run(Cell(method, 10_000), 0, 0)
        assert whole.error < 1e-5
        assert whole.scale == 1
        assert whole.seconds == 1
        (part,) = problem.run(Cell(method, 10), 0, 0)
        assert part.value != part.value  # NaN: only the time is known
        assert part.scale == pytest.approx(size / 10)
        assert part.vjps + part.jvps == {"ntk-products": 20}.get(method, 10)


def test_the_papers_exact_metrics_take_several_products_a_column(problems: dict[str, Problem]) -> None:
    rows = problems["mnist"].run(Cell("ntk-products", 8, METRICS), 0, 0)
    n = problems["mnist"].facts["n"]
    assert [row.scale * 8 / n for row in rows] == [2, 6, 3]


@pytest.mark.parametrize("method", ["hutch++", "rhutch", "fhutch", "per-sample", "exact", "tolerance"])
def test_estimates_of_the_trace(problems: dict[str, Problem], method: str) -> None:
    setting = {"tolerance": 0.01, "exact": 0}.get(method, 600)
    (row,) = problems["gru"].run(Cell(method, setting), 0, 0)
    assert row.error < (1e-5 if method == "exact" else 0.2)
    assert row.vjps + row.jvps > 0


def test_the_papers_products_of_each_metric(problems: dict[str, Problem]) -> None:
    """m = 12: nine products with K, with K², and with KK′, K² and K′² together."""
    for metric, products in zip(METRICS, (18, 54, 27), strict=True):
        (row,) = problems["mnist"].run(Cell("hutch++", 12, (metric,)), 0, 0)
        assert (row.vjps, row.jvps) == (products, products)


@pytest.mark.parametrize("method", ["exact", "sketch", "nystrom"])
def test_ours_measures_every_metric_in_one_run(problems: dict[str, Problem], method: str) -> None:
    rows = problems["mnist"].run(Cell(method, 24, METRICS), 0, 0)
    assert [row.metric for row in rows] == list(METRICS)
    assert all(row.error < (1e-4 if method == "exact" else 0.5) for row in rows)
    assert len({row.seconds for row in rows}) == 1


def test_seeds_differ_between_methods_settings_and_repetitions() -> None:
    cells = [Cell("hutch++", 6), Cell("hutch++", 12), Cell("rhutch", 6), Cell("hutch++", 6, ("alignment",))]
    seeds = [seed_of(base, cell, repeat) for base in (0, 1) for cell in cells for repeat in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == seed_of(0, Cell("hutch++", 6), 0)


def test_the_papers_models_are_those_of_the_paper() -> None:
    state = torch.get_rng_state()
    mlp, gru = paper_mlp().kernel(), paper_gru().kernel()
    assert (mlp.n, mlp.n_params) == (3200, 64_704)
    assert (gru.n, gru.n_params) == (48_000, 14_592)
    assert mlp.trace("exact").value == pytest.approx(2314.2322, abs=1e-3)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_plan_of_runs() -> None:
    for experiment in EXPERIMENTS:
        for cells in (experiment.cells, experiment.quick):
            keys = [(cell.method, cell.setting, cell.metrics) for cell in cells]
            assert len(set(keys)) == len(keys)
            assert {cell.method for cell in cells} <= METHOD_NAMES.keys()
            assert cells[0].method == "ntk-products"
            paper = [cell.setting for cell in cells if cell.method in ("hutch++", "rhutch", "fhutch")]
            assert all(m % 6 == 0 for m in paper)
