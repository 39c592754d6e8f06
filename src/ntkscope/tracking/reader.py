"""Reading the logs of runs: whatever can be read, and what is wrong with the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntkscope.tracking.log import SCHEMA
from ntkscope.tracking.look import Look
from ntkscope.tracking.run import Run

__all__ = ["read_runs"]

_KINDS = ("run", "look", "failed", "resume")


@dataclass
class _Found:
    """What was read of one run so far."""

    header: dict[str, Any] = field(default_factory=dict)
    looks: dict[int, Look] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_runs(path: str | Path) -> tuple[Run, ...]:
    """The runs in a log; one, unless logs were put together.

    What cannot be read is left out and said in :attr:`~ntkscope.tracking.run.Run.problems`.

    Args:
        path: What a tracker wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If nothing in it can be read, with the reason.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no log {path}; name the file that Tracker(log=...) wrote")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the .jsonl file that Tracker(log=...) wrote")
    found: dict[str, _Found] = {}
    problems: list[str] = []
    for number, record in _records(path, problems):
        one = found.setdefault(str(record.get("run", "?")), _Found())
        _take(one, record, number)
    if not any(one.header or one.looks for one in found.values()):
        why = "; ".join(problems) or "it is empty"
        raise ValueError(f"{path} holds no run that can be read: {why}; name a log that a Tracker wrote")
    if len(found) > 1:
        problems.append(f"it holds {len(found)} runs, which are shown apart; give every run a log of its own")
    return tuple(_run(path, key, one, problems, len(found) > 1) for key, one in found.items())


def _records(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every line that is a record, with its number."""
    text = path.read_bytes()
    lines = text.split(b"\n")
    whole = len(lines) - 1
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:  # of JSON and of UTF-8
            if number > whole:
                problems.append(f"the last line, {number}, is not whole: the run was killed as it wrote it")
            else:
                problems.append(f"line {number} is not JSON, and is left out")
            continue
        if not isinstance(record, dict) or record.get("kind") not in _KINDS:
            problems.append(f"line {number} is no record of a tracker, and is left out")
            continue
        yield number, record


def _take(one: _Found, record: dict[str, Any], number: int) -> None:
    kind = record["kind"]
    if kind == "run":
        if one.header:
            one.problems.append(f"line {number} begins the same run again, and is left out")
            return
        one.header = record
        schema = record.get("schema")
        if schema != SCHEMA:
            one.problems.append(
                f"line {number} has the schema version {schema!r}, expected {SCHEMA}; update ntkscope. What "
                "can be read is shown"
            )
    elif kind == "failed":
        one.failures[int(record.get("step", -1))] = str(record.get("reason", "unknown"))
    elif kind == "look":
        try:
            look = Look.from_dict(record)
        except ValueError as error:
            one.problems.append(f"line {number} is left out: {error}")
            return
        if look.step in one.looks:
            one.problems.append(f"line {number} is a second look at step {look.step}, and is left out")
            return
        one.looks[look.step] = look
        wrong = [name for name, estimate in look.metrics.items() if not math.isfinite(estimate.value)]
        if wrong:
            one.problems.append(f"line {number}, step {look.step}: not finite: {', '.join(wrong)}")


def _run(path: Path, key: str, one: _Found, problems: list[str], several: bool) -> Run:
    own = list(problems)
    if not one.header:
        own.append("the line that begins the run is missing, and with it the settings")
    header = one.header
    name = str(header.get("name") or path.stem)
    return Run(
        name=f"{name} ({key[:6]})" if several else name,
        id=key,
        looks=tuple(one.looks[step] for step in sorted(one.looks)),
        settings=_dict(header.get("settings")),
        config=_dict(header.get("config")),
        versions={str(k): str(v) for k, v in _dict(header.get("versions")).items()},
        failures=one.failures,
        problems=tuple(own + one.problems),
        folder=path.parent,
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
