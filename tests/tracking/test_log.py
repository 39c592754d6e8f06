"""The log: what a killed run leaves, how a run is resumed, and what the reader says of what is wrong."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntkscope import Tracker
from ntkscope.tracking import Run, read_runs
from ntkscope.tracking.resume import open_log
from tracking.training import STEPS, Training, problem, run

SCRIPT = Path(__file__).parent / "killed.py"


def _watch(log: Path, **options: Any) -> Any:
    return lambda t: Tracker(t.model, t.inputs, 2, targets=t.targets, log=log, by="layer", **options)


def _same(one: Run, other: Run, taken_later: Collection[int] = ()) -> None:
    """Equal looks, but for the seconds."""
    assert [look.step for look in one.looks] == [look.step for look in other.looks]
    for ours, theirs in zip(one.looks, other.looks, strict=True):
        for found, expected in [
            (ours.metrics, theirs.metrics),
            *zip(ours.layers.values(), theirs.layers.values(), strict=True),
        ]:
            assert found.keys() == expected.keys()
            for name in found:
                assert found[name].value == pytest.approx(expected[name].value, rel=1e-5, abs=1e-9), name
        # A look that was due when the process died is taken by the next one, which was told no values.
        assert ours.values == theirs.values or (ours.step in taken_later and not ours.values)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    trackers: list[Tracker] = []
    run(STEPS, lambda t: trackers.append(_watch(log, config={"lr": 0.3, "odd": object})(t)) or trackers[0])
    (found,) = read_runs(log)
    assert found.problems == ()
    assert found.name == "run"
    assert found.config["lr"] == 0.3
    assert found.settings["n"] == 18
    assert found.settings["every"] == 2
    assert list(found.looks) == trackers[0].looks
    steps, matrix = found.alignment_matrix()
    assert steps == list(range(0, STEPS + 1, 2))
    curve = found.curve("alignment_start")
    assert matrix.values[0] == pytest.approx(curve.values, abs=1e-6)
    assert np.all(curve.low[1:] < curve.values[1:])


def test_a_resumed_run_is_the_same_curve(tmp_path: Path) -> None:
    whole, parts, saved = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl", tmp_path / "state.pt"
    run(STEPS, _watch(whole))
    training = Training()
    tracker = _watch(parts)(training)
    for _ in range(7):
        loss = training.step()
        if training.steps == 3:
            training.save(saved)
        tracker.step(loss=loss)
    with parts.open("ab") as file:
        file.write(b'{"kind": "look", "ste')  # the process was killed here
    again = Training()
    again.load(saved)
    tracker = _watch(parts, resume=again.steps)(again)
    assert [look.step for look in tracker.looks] == [0, 2, 4, 6]
    while again.steps < STEPS:
        tracker.step(loss=again.step())
    (one,), (other,) = read_runs(whole), read_runs(parts)
    assert other.problems == ()
    assert one.id != other.id
    _same(one, other)
    lines = [json.loads(line) for line in parts.read_text().splitlines()]
    assert [line["kind"] for line in lines].count("resume") == 1
    assert {line["run"] for line in lines} == {other.id}


def test_a_look_that_was_due_when_the_run_was_killed_is_taken(tmp_path: Path) -> None:
    training = Training()
    tracker = _watch(tmp_path / "run.jsonl")(training)
    for _ in range(3):
        tracker.step(loss=training.step())
    training.step()
    resumed = _watch(tmp_path / "run.jsonl", resume=4)(training)
    assert [look.step for look in resumed.looks] == [0, 2, 4]


def _kill_once(log: Path, saved: Path, steps: int, seconds: float | None, ready: bool = True) -> bool:
    """Runs the script, and kills it so long after it is ready or started; whether it came to its end."""
    command = [sys.executable, str(SCRIPT), str(log), str(saved), str(steps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if seconds is not None:
            if ready:
                assert process.stdout.readline() == "ready\n"
            time.sleep(seconds)
            process.kill()
        return process.wait() == 0


def _steps(log: Path) -> list[int]:
    return [look.step for look in read_runs(log)[0].looks] if log.exists() else []


def _killed(folder: Path, kills: int, steps: int) -> None:
    chance = random.Random(5)
    log, saved = folder / "run.jsonl", folder / "state.pt"
    for kill in range(kills):
        before = _steps(log)
        if kill % 4 == 3:  # as it starts, which takes some seconds
            _kill_once(log, saved, steps, chance.uniform(0, 4), ready=False)
        else:
            _kill_once(log, saved, steps, chance.uniform(0, 0.3))
        after = _steps(log)
        assert after[: len(before)] == before  # no record lost
        assert len(set(after)) == len(after)  # none doubled
    assert _kill_once(log, saved, steps, None)
    for line in log.read_text().splitlines():
        json.loads(line)
    (found,) = read_runs(log)
    assert found.problems == ()
    run(steps, _watch(folder / "whole.jsonl"))
    records = [json.loads(line) for line in log.read_text().splitlines()]
    _same(
        found,
        read_runs(folder / "whole.jsonl")[0],
        taken_later=[record["step"] for record in records if record["kind"] == "resume"],
    )
    assert len(found.fingerprints()) == len(found.looks)


def test_a_killed_run(tmp_path: Path) -> None:
    _killed(tmp_path, kills=1, steps=40)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times(tmp_path: Path) -> None:
    _killed(tmp_path, kills=20, steps=400)


def test_a_log_that_ends_at_any_byte_goes_on(good: list[str], tmp_path: Path) -> None:
    """Every look whose line is whole is there, and nothing of the one that is not."""
    text = "".join(line + "\n" for line in good).encode()
    ends = [index + 1 for index, byte in enumerate(text) if byte == ord("\n")]
    settings = json.loads(good[0])["settings"]
    log = tmp_path / "run.jsonl"
    for cut in sorted({*range(0, len(text), 61), *ends, *(end - 1 for end in ends)}):
        log.write_bytes(text[:cut])
        whole = sum(end <= cut for end in ends)
        if whole == 0:
            with pytest.raises(ValueError, match="holds no run to go on with"):
                open_log(log, 1, settings)
            assert open_log(log, 0, settings) is None
            continue
        old = open_log(log, 1, settings)
        assert old is not None
        assert [look.step for look in old.looks] == [0, 2, 4][: whole - 1]
        assert old.problems == ()
        assert log.read_bytes() == text[: ends[whole - 1]]


def test_a_log_is_not_written_over(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    model, inputs, targets = problem()
    tracker = Tracker(model, inputs, targets=targets, log=log)
    with pytest.raises(ValueError, match="holds a run already; go on with it by resume="):
        Tracker(model, inputs, log=log)
    with pytest.raises(ValueError, match="was made with probes=2, found 4; pass the same"):
        Tracker(model, inputs, targets=targets, log=log, probes=4, resume=0)
    with pytest.raises(ValueError, match="different inputs: the values differ"):
        Tracker(model, inputs + 1, targets=targets, log=log, resume=1).update()
    with pytest.raises(ValueError, match="holds one run; make a new Tracker"):
        tracker.reset()
    with pytest.raises(ValueError, match="holds no run to go on with"):
        Tracker(model, inputs, log=tmp_path / "other.jsonl", resume=3)
    with pytest.raises(ValueError, match=r"must end in \.jsonl"):
        Tracker(model, inputs, log=tmp_path / "run.txt")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    log = tmp_path_factory.mktemp("good") / "run.jsonl"
    run(4, _watch(log))
    return log.read_text().splitlines()


BROKEN: dict[str, tuple[Any, list[int], str]] = {
    "last-line": (lambda a: "\n".join(a)[:-20], [0, 2], "the last line, 4, is not whole: the run was killed"),
    "middle": (lambda a: "\n".join([*a[:2], "}{", *a[2:], ""]), [0, 2, 4], "line 3 is not JSON"),
    "bytes": (lambda a: "\n".join([*a[:2], "\udcff", *a[2:], ""]), [0, 2, 4], "line 3 is not JSON"),
    "other": (lambda a: "\n".join([*a, '{"a": 1}', ""]), [0, 2, 4], "line 5 is no record of a tracker"),
    "schema": (
        lambda a: "\n".join([a[0].replace('"schema": 1', '"schema": 7'), *a[1:], ""]),
        [0, 2, 4],
        "line 1 has the schema version 7, expected 1; update ntkscope",
    ),
    "field": (
        lambda a: "\n".join([*a[:3], a[3].replace('"training"', '"trained"'), ""]),
        [0, 2],
        "line 4 is left out: a look lacks the field 'training'",
    ),
    "twice": (lambda a: "\n".join([*a, a[-1], ""]), [0, 2, 4], "line 5 is a second look at step 4"),
    "no-header": (lambda a: "\n".join([*a[1:], ""]), [0, 2, 4], "the line that begins the run is missing"),
}


@pytest.mark.parametrize(("change", "steps", "words"), BROKEN.values(), ids=BROKEN)
def test_what_can_be_read_is_read(
    good: list[str], tmp_path: Path, change: Any, steps: list[int], words: str
) -> None:
    log = tmp_path / "run.jsonl"
    log.write_bytes(change(good).encode(errors="surrogateescape"))
    (found,) = read_runs(log)
    assert [look.step for look in found.looks] == steps
    assert len(found.problems) == 1
    assert words in found.problems[0]


def test_nan_is_said_and_the_rest_is_read(good: list[str], tmp_path: Path) -> None:
    records = [json.loads(line) for line in good]
    trace = records[2]["metrics"]["trace"]
    trace["value"], trace["not_finite"] = None, {"value": "nan"}
    log = tmp_path / "run.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    (found,) = read_runs(log)
    assert list(found.problems) == ["line 3, step 2: not finite: trace"]
    assert np.isnan(found.curve("trace").values).tolist() == [False, True, False]


def test_mixed_runs_are_told_apart(good: list[str], tmp_path: Path) -> None:
    own = json.loads(good[0])["run"]
    other = [line.replace(own, "f" * 32) for line in good]
    log = tmp_path / "run.jsonl"
    log.write_text("\n".join([*good[:2], *other, *good[2:], ""]))
    found = read_runs(log)
    assert [run.name for run in found] == [f"run ({own[:6]})", "run (ffffff)"]
    assert [len(run.looks) for run in found] == [3, 3]
    assert all("it holds 2 runs, which are shown apart" in run.problems[0] for run in found)


def test_what_is_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no log"):
        read_runs(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is a folder"):
        read_runs(tmp_path)
    for text, words in (
        ("", "it is empty"),
        ('{"a": 1}\n', "line 1 is no record"),
        ("x", "line, 1, is not whole"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_runs(tmp_path / "bad.jsonl")
