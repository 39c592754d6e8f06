"""What every test shares: a machine that does not depend on the clock, and ways that can be forced."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ntkscope.engines.base import Machine
from ntkscope.engines.torch import machine as torch_machine
from ntkscope.ways import plan as planner


@pytest.fixture(autouse=True)
def steady_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The same predicted speed everywhere, so that plans do not depend on the moment."""
    machine = Machine(flops=5e10, elements=1e9, call=5e-6)
    monkeypatch.setattr(torch_machine, "timed", lambda device, dtype: machine)
    return machine


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes the planner choose a way by its name, whatever it costs."""

    def force(name: str) -> None:
        def choose(
            quantity: str, ways: list[planner.Prediction], *, exact_only: bool = False
        ) -> planner.Plan:
            possible = {way.name: way for way in ways if not way.why_not and (way.exact or not exact_only)}
            return planner.Plan(quantity, tuple(ways), possible[name], "the test says so")

        monkeypatch.setattr(planner, "choose", choose)

    return force
