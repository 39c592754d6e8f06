"""A machine that does not depend on the clock, so that a seed always takes the same ways."""

from __future__ import annotations

from ntkscope.ways import plan as planner

__all__ = ["steady"]


def steady() -> None:
    """As the tests' own fixture does, for the programs beside them."""
    machine = planner.Machine(flops=5e10, elements=1e9, call=5e-6)
    planner.Machine.timed = lambda device, dtype: machine  # type: ignore[method-assign, assignment]
