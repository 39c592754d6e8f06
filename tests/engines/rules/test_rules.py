"""What rules cover, and rules of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agreement import agree, random
from inside import refusal
from ntkscope import NTK
from ntkscope.engines.torch.gradients.factors import Direct, Outer
from ntkscope.engines.torch.gradients.sides import Features
from ntkscope.engines.torch.rules import Rule, add_rule, find_rule
from ntkscope.engines.torch.rules import base as rules
from reference import dense
from zoo import Function

# What a rule does not cover goes the general way, and says so.

GENERAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "not-covered": (
        lambda: Function(lambda m, x: torch.einsum("bi,ii->bi", x, m.weight), weight=torch.randn(3, 3)),
        lambda: random(2, 3),
        "used by einsum in a way that its rule does not cover",
    ),
    "another-argument": (
        lambda: Function(lambda m, x: F.linear(m.weight, x).T, weight=torch.randn(2, 3)),
        lambda: random(4, 3),
        "used as input of linear",
    ),
    "no-rule": (
        lambda: Function(lambda m, x: torch.linalg.cross(x, m.weight[None]), weight=torch.randn(3)),
        lambda: random(4, 3),
        "used by linalg_cross, which has no rule",
    ),
    "in-a-list": (
        lambda: Function(
            lambda m, x: torch.stack([torch.block_diag(y, m.weight) for y in x]) ** 2,
            weight=torch.randn(2, 3),
        ),
        lambda: random(3, 4),
        "used by block_diag, which has no rule",
    ),
}


@pytest.mark.parametrize(("build", "inputs", "reason"), GENERAL.values(), ids=GENERAL)
def test_uses_without_a_rule_are_right_and_named(
    build: Callable[[], nn.Module], inputs: Callable[[], Tensor], reason: str
) -> None:
    ntk = agree(build().double(), inputs(), {"weight"})
    assert ntk.engine.samples().jacobian.graph.why_general == {"weight": reason}
    assert f"weight takes the general way: {reason}" in ntk.engine.samples().jacobian.describe()


# Rules of one's own.


@pytest.fixture(scope="module")
def operation() -> Iterator[Any]:
    """y = x ∘ w, which torch has no rule for under this name."""
    library = torch.library.Library("ntkscope_tests", "FRAGMENT")
    library.define("scale(Tensor x, Tensor w) -> Tensor")
    library.impl("scale", lambda x, w: x * w, "CompositeImplicitAutograd")
    yield torch.ops.ntkscope_tests.scale.default
    library._destroy()


@pytest.fixture(autouse=True)
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a test adds are gone after it."""
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))


def _model() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.tanh(torch.ops.ntkscope_tests.scale(m.linear(x), m.weight)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Function(run, linear=nn.Linear(3, 4), weight=torch.randn(4), head=nn.Linear(4, 2)).double()


def _scale_rule(factor: float = 1.0, **options: Any) -> Rule:
    def gradient(arguments: rules.Arguments, delta: Tensor, name: str) -> Direct:
        return Direct(factor * (delta * arguments["x"]).flatten(2))

    return Rule(("w",), ("x",), gradient, **options)


def test_an_operation_of_ones_own_takes_the_general_way(operation: Any) -> None:
    ntk = agree(_model(), random(4, 3), {"weight"})
    reason = ntk.engine.samples().jacobian.graph.why_general["weight"]
    assert reason == "used by scale, which has no rule"


def test_a_rule_of_ones_own_is_used(operation: Any) -> None:
    rule = _scale_rule()
    add_rule(operation, rule)
    assert find_rule(operation) is rule
    ntk = agree(_model(), random(4, 3))
    assert any(use.rule is rule for use in ntk.engine.samples().jacobian.graph.uses)


def test_one_function_is_a_rule(operation: Any) -> None:
    @rules.rule_of(operation, parameters=("w",), captures=("x",))
    def scale(arguments: rules.Arguments, delta: Tensor, name: str) -> Direct:
        return Direct((delta * arguments["x"]).flatten(2))

    found = find_rule(operation)
    assert found == Rule(("w",), ("x",), scale)
    ntk = agree(_model(), random(4, 3))
    assert any(use.rule is found for use in ntk.engine.samples().jacobian.graph.uses)


def test_a_function_may_be_the_rule_of_several_operations() -> None:
    assert find_rule(torch.ops.aten.conv1d.default) is find_rule(torch.ops.aten.conv3d.padding)
    assert find_rule(torch.ops.aten.expand.default) is find_rule(torch.ops.aten.broadcast_to.default)


def test_a_rule_may_hold_for_some_arguments_alone(operation: Any) -> None:
    add_rule(operation, _scale_rule(applies=lambda arguments: arguments["w"].shape[0] == 5))
    ntk = agree(_model(), random(4, 3), {"weight"})
    reason = ntk.engine.samples().jacobian.graph.why_general["weight"]
    assert reason == "used by scale in a way that its rule does not cover"


@pytest.mark.parametrize(
    "wrong",
    [
        _scale_rule(2.0),
        _scale_rule(0.0),
        _scale_rule(1.001),
        Rule(("w",), (), lambda arguments, delta, name: Direct(delta.flatten(2))),
        Rule(
            ("w",),
            ("x",),
            lambda a, delta, name: Outer(delta[:, :, None], Features(a["x"][:, None])),
        ),
    ],
    ids=["doubled", "zero", "slightly-off", "another-formula", "another-shape"],
)
def test_a_wrong_rule_is_detected_and_the_numbers_stay_right(operation: Any, wrong: Rule) -> None:
    add_rule(operation, wrong)
    model, x = _model(), random(4, 3)
    ntk, expected = NTK(model, x), dense(model, x)
    reason = refusal(ntk)
    assert "a rule of add_rule is wrong" in reason or "cannot run sample by sample" in reason
    trace = ntk.trace("exact")
    assert trace.method in ("exact (n VJPs)", "exact (p JVPs)")
    assert trace.value == pytest.approx(expected.trace, rel=1e-9)
    assert ntk.frobenius_norm("exact").value == pytest.approx(expected.frobenius_norm, rel=1e-9)


def test_a_rule_that_fails_is_named_and_the_numbers_stay_right(operation: Any) -> None:
    def fail(arguments: rules.Arguments, delta: Tensor, name: str) -> Direct:
        raise RuntimeError("the rule's own error")

    add_rule(operation, Rule(("w",), ("x",), fail))
    model, x = _model(), random(4, 3)
    ntk = NTK(model, x)
    assert "the rule's own error" in refusal(ntk)
    assert ntk.trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-9)


def test_a_rule_whose_gradients_are_not_flat_is_told_so(operation: Any) -> None:
    add_rule(operation, Rule(("w",), ("x",), lambda a, delta, name: Direct(delta * a["x"])))
    reason = refusal(NTK(_model(), random(4, 3)))
    assert re.search(r"shape \(probes, samples, entries\), found .*flatten\(2\)", reason)


TARGETS = [torch.add, torch.ops.aten.add, "aten::add", nn.Linear]


@pytest.mark.parametrize("target", TARGETS, ids=["function", "packet", "text", "module"])
def test_a_rule_is_for_an_overload(target: Any) -> None:
    with pytest.raises(TypeError, match=r"operator overload such as .*scale.default, found .*custom_op"):
        add_rule(target, _scale_rule())
    with pytest.raises(TypeError, match="operator overload"):
        rules.rule_of(target, parameters=(), captures=())(lambda arguments, delta, name: Direct(delta))
