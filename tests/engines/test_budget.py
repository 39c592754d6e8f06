"""What is free, how much of it one step takes, and what is said where it does not suffice."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from ntkscope import NTK
from ntkscope.engines.torch import memory
from ntkscope.engines.torch.memory import Chunks, Portions, free_on_host


def _only_one(start: int, stop: int) -> None:
    if stop - start > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")


# What is said of it.


def test_one_warning_names_the_sizes() -> None:
    """However often they are halved."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Chunks(1, size=8).run(0, 16, _only_one)
    (one,) = said
    assert str(one.message).startswith(
        "memory ran out with 8 products at once; going on with 4 at once; memory="
    )
    portions = Portions(batch=64, sample=1 << 20, pair=1 << 20, piece=1, operations=1, budget=1 << 28)
    tries: list[int] = []

    def work() -> int:
        tries.append(portions.budget)
        if portions.budget > 1 << 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return portions.budget

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert portions.run(work, 8, lambda: None) <= 1 << 24
    assert len(tries) > 2
    (one,) = said
    assert "with steps of 67,108,864 bytes; going on with steps of 33,554,432 bytes; " in str(one.message)


# How much there is.


def _system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_free_is_that_of_the_container(tmp_path: Path) -> None:
    machine = {"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable:    4000000 kB\n"}
    assert free_on_host(_system(tmp_path / "machine", machine)) == 4_000_000 * 1024
    second = {"sys/fs/cgroup/memory.max": "1000000\n", "sys/fs/cgroup/memory.current": "400000\n"}
    assert free_on_host(_system(tmp_path / "container", machine | second)) == 600_000
    assert (
        free_on_host(_system(tmp_path / "open", machine | {**second, "sys/fs/cgroup/memory.max": "max"}))
        > 1e9
    )
    group = "sys/fs/cgroup/memory/memory."
    first = {f"{group}limit_in_bytes": "500", f"{group}usage_in_bytes": "600"}
    assert free_on_host(_system(tmp_path / "full", machine | first)) == 0
    assert free_on_host(tmp_path / "elsewhere") == float("inf")


def test_the_default_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((float("inf"), 1 << 30), (1 << 40, 1 << 30), (1 << 30, 1 << 28), (0, 1)):
        monkeypatch.setattr(memory, "free_on_host", lambda free=free: free)
        assert NTK(nn.Linear(2, 1), torch.ones(1, 2)).memory == expected
    assert NTK(nn.Linear(2, 1), torch.ones(1, 2), memory="2MiB").memory == 2 << 20
