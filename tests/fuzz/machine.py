"""A machine that does not depend on the clock, so that a seed always takes the same ways."""

from __future__ import annotations

from ntkscope.engines.base import Machine
from ntkscope.engines.torch import machine as torch_machine

__all__ = ["steady"]


def steady() -> None:
    """As the tests' own fixture does, for the programs beside them."""
    machine = Machine(flops=5e10, elements=1e9, call=5e-6)
    torch_machine.timed = lambda device, dtype: machine  # type: ignore[assignment]
