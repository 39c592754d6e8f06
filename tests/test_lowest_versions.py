"""``make test-lowest`` tests what pyproject.toml promises: the two must say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Tools that no test runs.
TOOLS = {"mypy", "ruff"}


def _stated() -> dict[str, str]:
    """Lowest version of every dependency, those of the extras that the tests need too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("paper", "pandas", "lightning", "transformers", "dev")
    lines = [*project["dependencies"], *(line for name in names for line in extras[name])]
    found = dict(line.split(">=") for line in lines if not line.startswith("ntkscope["))
    return {name: version for name, version in found.items() if name not in TOOLS}


def _pinned() -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))


def _release(version: str) -> list[int]:
    """A version's numbers without zeros at the end: 8.3 is 8.3.0."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


@pytest.mark.parametrize("name", _stated())
def test_the_lowest_version_is_pinned(name: str) -> None:
    assert _release(_pinned()[name]) == _release(_stated()[name])
