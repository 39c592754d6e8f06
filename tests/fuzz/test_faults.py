"""The fuzzer is shown to see: each fix taken out alone makes a model fail that is right with it."""

from __future__ import annotations

import pytest

from fuzz.compare import judge
from fuzz.faults import FAULTS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    before = judge(fault.spec)
    assert before.kind in ("right", "refused"), before
    for place, attribute, value in fault.patches:
        monkeypatch.setattr(place, attribute, value)
    assert judge(fault.spec).failed


def test_nine_classes_are_seen() -> None:
    assert len({fault.number for fault in FAULTS.values()}) >= 9
