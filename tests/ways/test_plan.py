"""Plans are arithmetic: they grow with the counts, and the cheapest way is taken."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ntkscope import NTK
from ntkscope.engines.base import Machine, Sizes
from ntkscope.engines.torch.machine import timed
from ntkscope.ways.base import NeedsSamples
from ntkscope.ways.exact import ParameterGram
from ntkscope.ways.plan import Prediction, choose, predict
from ntkscope.ways.table import WAYS
from zoo import BY_NAME

MACHINE = Machine(flops=1e10, elements=1e9, call=1e-6)
SIZES = Sizes(
    n=1000, p=5000, batch=100, outputs=10, operations=20, elements=20_000, flops=1_000_000, taps=100,
    gradient_flops=5000.0, general=10, used=5000, pieces=1, kernels=1,
)  # fmt: skip


#: Coupled samples, as :class:`ntkscope.ways.base.NeedsSamples` says it.
COUPLED = {way.name: "coupled" for way in WAYS if isinstance(way, NeedsSamples)}


def _way(name: str, seconds: float, *, exact: bool = False, why_not: str = "") -> Prediction:
    way = next(way for way in WAYS if way.is_exact == exact)
    return Prediction(way, name, "", seconds, why_not)


def _seconds(ways: list[Prediction]) -> dict[str, float]:
    return {way.name: way.seconds for way in ways}


@pytest.mark.parametrize("of_products", [False, True], ids=["trace", "kernel"])
@pytest.mark.parametrize(
    "field", ["n", "p", "operations", "elements", "flops", "taps", "general", "gradient_flops"]
)
def test_no_count_makes_a_way_cheaper(of_products: bool, field: str) -> None:
    more = dataclasses.replace(SIZES, **{field: getattr(SIZES, field) * 10})
    before = _seconds(predict(of_products, SIZES, MACHINE, 0.01))
    after = _seconds(predict(of_products, more, MACHINE, 0.01))
    assert before.keys() == after.keys()
    assert all(after[name] >= before[name] for name in before)
    assert any(after[name] > before[name] for name in before)


def test_parameters_used_often_cost_the_forward_way_alone() -> None:
    more = dataclasses.replace(SIZES, used=10 * SIZES.used)
    before, after = (
        _seconds(predict(False, SIZES, MACHINE, 0.01)),
        _seconds(predict(False, more, MACHINE, 0.01)),
    )
    assert {name for name in before if after[name] != before[name]} == {"per-sample-forward"}


@pytest.mark.parametrize("field", ["flops", "elements"])
def test_a_faster_machine_is_faster(field: str) -> None:
    faster = dataclasses.replace(MACHINE, **{field: getattr(MACHINE, field) * 10})
    before, after = (
        _seconds(predict(False, SIZES, MACHINE, 0.01)),
        _seconds(predict(False, SIZES, faster, 0.01)),
    )
    assert all(after[name] < before[name] for name in before)


def test_a_smaller_tolerance_costs_more_for_estimates_alone() -> None:
    loose, tight = predict(False, SIZES, MACHINE, 0.01), predict(False, SIZES, MACHINE, 0.001)
    for before, after in zip(loose, tight, strict=True):
        assert after.name == before.name
        assert (after.seconds > before.seconds) is not before.exact


def test_measuring_more_kernels_costs_more() -> None:
    two = dataclasses.replace(SIZES, kernels=2)
    before, after = (
        _seconds(predict(True, SIZES, MACHINE, 0.01)),
        _seconds(predict(True, two, MACHINE, 0.01)),
    )
    assert all(after[name] > 1.9 * before[name] for name in before)


def test_the_cheapest_way_that_can_be_taken_is_taken() -> None:
    ways = [
        _way("slow", 3.0, exact=True),
        _way("quick", 1.0),
        _way("impossible", 0.1, exact=True, why_not="the samples are coupled"),
        _way("middle", 2.0, exact=True),
    ]
    assert choose("trace", ways).choice.name == "quick"
    assert choose("trace", ways, exact_only=True).choice.name == "middle"
    assert choose("trace", ways[:1]).reason == "it is the only way here"
    text = str(choose("trace", ways))
    assert text.splitlines()[0] == "trace: quick, because it is predicted 2 times faster than middle."
    assert " → quick" in text
    assert "not here: the samples are coupled" in text
    assert text.index("quick ") < text.index("middle ") < text.index("slow ") < text.index("impossible ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2e-6, "2 µs"),
        (0.0021, "2.1 ms"),
        (0.25, "250 ms"),
        (3.0, "3 s"),
        (600.0, "10 min"),
        (36000.0, "10 h"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert f"about {text}" in str(choose("trace", [_way("one", seconds)]))


def test_no_structure_rules_out_what_needs_it() -> None:
    ways = {way.name: way for way in predict(False, SIZES, MACHINE, 0.01, COUPLED)}
    assert {name for name, way in ways.items() if way.why_not} == {
        "exact (per sample)",
        "per-sample",
        "per-sample-forward",
    }
    ways = {way.name: way for way in predict(True, SIZES, MACHINE, 0.01, COUPLED)}
    assert ways["exact (tiles)"].why_not == "coupled"
    assert not ways["exact (rows)"].why_not


def test_the_gram_of_parameters_must_fit() -> None:
    small, large = dataclasses.replace(SIZES, p=10), dataclasses.replace(SIZES, p=10**6)
    possible = [ParameterGram().why_not(SimpleNamespace(sizes=sizes, engines=())) for sizes in (small, large)]
    assert not possible[0]
    assert "do not fit the memory budget" in possible[1]


def test_few_parameters_or_few_states_change_the_choice() -> None:
    coupled = dataclasses.replace(SIZES, batch=1, outputs=1000)
    few_parameters = dataclasses.replace(coupled, p=5)
    few_states = dataclasses.replace(coupled, n=5, outputs=5)
    for sizes, name in ((few_parameters, "exact (p JVPs)"), (few_states, "exact (n VJPs)")):
        assert (
            choose("trace", predict(False, sizes, MACHINE, 0.01, COUPLED), exact_only=True).choice.name
            == name
        )


def test_the_machine_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    machine = timed(torch.device("cpu"), torch.float32)
    assert min(machine.flops, machine.elements, machine.call) > 0
    assert timed(torch.device("cpu"), torch.float32) is machine
    assert machine.seconds(machine.flops, machine.elements, 0) == pytest.approx(2)


class _Distances(nn.Module):
    """Distances to centres: an operation that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, self.centres)


def test_explain_prints_the_plan_and_the_structure(capsys: pytest.CaptureFixture[str]) -> None:
    NTK(_Distances(), torch.rand(3, 2, 4)).explain()
    text = capsys.readouterr().out
    assert "3 independent samples with 10 outputs each" in text
    assert "centres takes the general way: used by " in text
    assert "trace: " in text
    assert "exact (n VJPs)" in text
    BY_NAME["gru"].shared().explain("measure", [BY_NAME["gru"].shared(1)])
    text = capsys.readouterr().out
    assert "the state comes in 5 pieces" in text
    assert "exact (tiles)" in text
    BY_NAME["coupled-by-the-caller"].shared().explain("alignment")
    assert "not treated on their own: batch_dim=None says" in capsys.readouterr().out


def test_a_plan_does_not_run_the_products() -> None:
    ntk = BY_NAME["mlp"].ntk()
    ntk.plan("measure", [BY_NAME["mlp"].shared(1)])
    assert (ntk.engine.ledger.vjps, ntk.engine.ledger.jvps) == (0, 0)


@pytest.mark.parametrize("metric", ["trace", "frobenius_norm", "effective_rank", "measure"])
def test_a_tight_tolerance_makes_exact_the_fast_method(metric: str) -> None:
    ntk = NTK(torch.nn.Linear(4, 2), torch.ones(50, 4))
    assert ntk.plan(metric, rtol=1e-5).choice.exact


def test_a_notebook_shows_a_table_of_the_ways() -> None:
    ways = [
        _way("slow", 2.0),
        _way("fast <b>", 1.0),
        _way("not", 0.5, why_not="coupled & all"),
    ]
    html = choose("trace", ways)._repr_html_()
    assert html.count("<tr>") == 4
    # The fastest first and marked, what cannot be taken last.
    assert html.index("<b>fast &lt;b&gt;</b>") < html.index("slow</td>") < html.index(">not</td>")
    assert "not here: coupled &amp; all" in html
    assert "it is predicted 2 times faster than slow" in html


def test_a_plan_is_json() -> None:
    ways = [_way("a", math.inf, why_not="no"), _way("b", 1.0, exact=True)]
    data = json.loads(json.dumps(choose("trace", ways).to_dict(), allow_nan=False))
    assert (data["quantity"], data["choice"], data["reason"]) == ("trace", "b", "it is the only way here")
    assert [(w["name"], w["seconds"], w["exact"], w["why_not"]) for w in data["ways"]] == [
        ("b", 1.0, True, ""), ("a", None, False, "no"),
    ]  # fmt: skip
