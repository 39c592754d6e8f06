"""The walk through the source is true: its files are met in its order on the way to a number."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import ntkscope
from ntkscope import NTK

ROOT = Path(ntkscope.__file__).parent
WALK = (Path(__file__).parents[1] / "docs" / "walk.md").read_text(encoding="utf-8")
MOST_FILES = 8


def _steps() -> list[tuple[str, str]]:
    """File and function of every step from NTK.trace to the number."""
    section = WALK.split("## From `NTK.trace` to the number")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`: `(\w+)`", section, re.MULTILINE)


def _calls() -> list[tuple[str, str]]:
    """The functions of the package that a trace calls, in order."""
    ntk = NTK(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Tanh()), torch.ones(10, 5))
    met: list[tuple[str, str]] = []

    def follow(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            met.append((path.relative_to(ROOT).as_posix(), frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        ntk.trace("rhutch", products=20)
    finally:
        sys.setprofile(before)
    return met


def test_from_the_verb_to_the_number_in_few_files() -> None:
    steps, calls = _steps(), iter(_calls())
    files = [file for file, _ in steps]
    assert 0 < len(files) <= MOST_FILES
    assert len(set(files)) == len(files)
    # Every step is called, after the one before it.
    missing = [step for step in steps if step not in calls]
    assert missing == []


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"`([\w/]+\.py)`", WALK):
        assert list(ROOT.rglob(name.split("/")[-1])) or (ROOT.parents[1] / name).exists(), name
    for room in re.findall(r"`((?:\w+/)+)`", WALK):
        assert list(ROOT.rglob(room.rstrip("/").split("/")[-1])), room
