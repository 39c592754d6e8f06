"""A run that is killed goes on where it was, to the same numbers; a file that is not its own is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ntkscope import NTK, Measurement, Options, journal, measure_all

METHODS: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "per-sample": {"method": "per-sample", "products": 8},
    "sketch": {"method": "sketch", "products": 40},
    "gram": {"method": "gram", "products": 40},
    "nystrom": {"method": "nystrom", "products": 40},
    "hutch++": {"method": "hutch++", "products": 60},
    "tolerance": {"rtol": 0.05},
    "sketch to a tolerance": {"method": "sketch", "rtol": 0.2},
}


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))


def _inputs(kind: str) -> Any:
    x = torch.randn(22, 6, generator=torch.Generator().manual_seed(1))
    return x if kind == "batch" else DataLoader(TensorDataset(x, torch.zeros(22)), batch_size=5)


def _measured(kind: str, **how: Any) -> Measurement:
    first = NTK(_model(0), _inputs(kind))
    return first.measure([first.at(_model(1))], **how)


def _values(found: Measurement) -> list[float]:
    return [estimate.value for _, estimate in found.rows()]


class _KilledError(Exception):
    pass


@contextmanager
def _killed_after(monkeypatch: pytest.MonkeyPatch, records: int) -> Iterator[None]:
    """Whoever writes one record more is killed."""
    left, write = [records], journal.Journal.write

    def counted(self: journal.Journal, arrays: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _KilledError
        write(self, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "write", counted)
        # Work in progress is kept as soon as there is any.
        patch.setattr(journal, "_EVERY", 0.0)
        yield


@pytest.mark.parametrize("kind", ["batch", "stream"])
@pytest.mark.parametrize("how", METHODS.values(), ids=list(METHODS))
def test_a_killed_run_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: dict[str, Any]
) -> None:
    whole = _measured(kind, resume=tmp_path / "whole", **how)
    assert _values(whole) == pytest.approx(_values(_measured(kind, **how)), rel=1e-6)
    kills = 0
    while True:
        with _killed_after(monkeypatch, 2):
            try:
                found = _measured(kind, resume=tmp_path / "killed", **how)
                break
            except _KilledError:
                kills += 1
    assert kills > (0 if how.get("method") == "per-sample" and kind == "batch" else 1) - 1
    assert _values(found) == _values(whole)
    assert _values(_measured(kind, resume=tmp_path / "killed", **how)) == _values(whole)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    for expected in (40, 0):
        first = NTK(_model(0), _inputs("batch"))
        jacobian = first.engine.jacobian  # type: ignore[attr-defined]
        with mock.patch.object(jacobian, "vjp", wraps=jacobian.vjp) as vjp:
            found = first.frobenius_norm("gram", products=40, resume=tmp_path / "run")
        assert sum(len(call.args[0]) for call in vjp.call_args_list) == expected
        # What was spent is that of all parts together.
        assert found.cost.vjps == 40


@pytest.mark.parametrize("verb", ["trace", "effective_rank", "alignment"])
def test_single_metrics(tmp_path: Path, verb: str) -> None:
    def run() -> float:
        first = NTK(_model(0), _inputs("batch"))
        others = [first.at(_model(1))] if verb == "alignment" else []
        found = getattr(first, verb)(*others, "sketch", products=30, options=Options(resume=tmp_path / verb))
        return float(found.value)

    assert run() == run()


def test_many_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(path: Path) -> Any:
        first = NTK(_model(0), _inputs("batch"))
        kernels = [first, first.at(_model(1)), first.at(_model(2))]
        return measure_all(kernels, "sketch", products=90, resume=path).alignment_matrix()

    with _killed_after(monkeypatch, 6), pytest.raises(_KilledError):
        run(tmp_path / "run")
    np.testing.assert_array_equal(run(tmp_path / "run"), run(tmp_path / "whole"))


def test_a_torn_record_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "run"
    whole = _measured("batch", method="sketch", products=40, resume=path)
    content = path.read_bytes()
    for length in (5, 30, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert _values(_measured("batch", method="sketch", products=40, resume=path)) == _values(whole)
        assert path.stat().st_size > length
    # One bit of what was written last.
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert _values(_measured("batch", method="sketch", products=40, resume=path)) == _values(whole)


def _ntk(dtype: torch.dtype = torch.float32, shift: float = 0.0, scale: float = 1.0) -> NTK:
    model = _model(0).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return NTK(model, _inputs("batch").to(dtype) + shift)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda path: _ntk().trace("gram", products=24, resume=path), "products is 20"),
        (lambda path: _ntk().trace("sketch", products=20, resume=path), "method is 'gram'"),
        (lambda path: _ntk().trace("gram", products=20, seed=1, resume=path), "seed is 0"),
        (lambda path: _ntk(shift=1).trace("gram", products=20, resume=path), "inputs of kernel 0"),
        (lambda path: _ntk(scale=1.001).trace("gram", products=20, resume=path), "state of kernel 0 differs"),
        (lambda path: _ntk(torch.float64).trace("gram", products=20, resume=path), "dtype of kernel 0"),
        (lambda path: _ntk().frobenius_norm("gram", products=20, resume=path), "metrics is"),
    ],
)  # fmt: skip
def test_another_run_is_refused(tmp_path: Path, work: Callable[[Path], Any], words: str) -> None:
    path = tmp_path / "run"
    NTK(_model(0), _inputs("batch")).trace("gram", products=20, resume=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"is of another run: its {words}"):
        work(path)
    assert path.read_bytes() == before


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    ntk, path = NTK(_model(0), _inputs("batch")), tmp_path / "run"
    with pytest.raises(ValueError, match="leave it out for matrices"):
        ntk.alignment(torch.eye(ntk.n), resume=path)
    with pytest.raises(ValueError, match="leave it out for matrices, hooks"):
        NTK(_model(0), _inputs("batch"), engine="hooks").trace("exact", resume=path)
    with pytest.raises(ValueError, match="resume= is for the four metrics"):
        ntk.moments(3, resume=path)
    with pytest.raises(ValueError, match="end the run by products= or a tolerance"):
        ntk.trace(seconds=3, resume=path)
    assert not path.exists()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    ntk = NTK(_model(0), _inputs("batch"))
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear reader, this is a letter.")
    with pytest.raises(ValueError, match="holds something else than a run's numbers"):
        ntk.trace(resume=letter)
    assert letter.read_text().startswith("Dear")
    with pytest.raises(ValueError, match="is not a file"):
        ntk.trace(resume=tmp_path)
    with pytest.raises(ValueError, match="cannot write"):
        ntk.trace(resume=tmp_path / "none" / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked here")
def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    with journal.keeping(tmp_path / "run", {}), pytest.raises(ValueError, match="in use by another process"):
        journal.Journal(tmp_path / "run", {})


def test_work_of_another_kind_is_refused(tmp_path: Path) -> None:
    with journal.keeping(tmp_path / "run", {}):
        journal.recorded("one", lambda: np.zeros(2))
    with (
        journal.keeping(tmp_path / "run", {}),
        pytest.raises(ValueError, match="has other work where this run"),
    ):
        journal.recorded("two", lambda: np.zeros(2))


SCRIPT = """
import sys, torch
from torch import nn
from ntkscope import NTK, journal
journal._EVERY = 0.05
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(40, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 30))
x = torch.randn(60, 40)
ntk = NTK(model, x)
print("ready", flush=True)
budget = {} if sys.argv[2] == "exact" else {"products": 400}
found = ntk.measure(method=sys.argv[2], resume=sys.argv[1], **budget)
print([e.value for _, e in found.rows()], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "sketch", "gram"])
def test_twenty_kills_lose_nothing(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start(name: str) -> subprocess.Popen[str]:
        words = [sys.executable, str(script), str(tmp_path / name), method]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def ended(run: subprocess.Popen[str]) -> list[float]:
        out, _ = run.communicate(timeout=300)
        values: list[float] = json.loads(out.splitlines()[-1])
        return values

    begun = time.monotonic()
    whole = ended(start("whole"))
    span = time.monotonic() - begun
    draw = np.random.default_rng(0)
    kills = 0
    for _ in range(20):
        run = start("killed")
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0, span / 8))
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            kills += 1
        run.communicate()
    assert kills > 5
    assert ended(start("killed")) == whole
