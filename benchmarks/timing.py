"""Times in turn: every round runs each contender once, so that ratios hold when the machine drifts."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Timed:
    """The seconds of one contender in every round, scaled to the whole work if only a part was run."""

    name: str
    seconds: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.seconds, [25, 75])
        return float(low), float(high)

    def ratio_to(self, other: Timed) -> tuple[float, float, float]:
        """Median and quartiles of this over the other, round by round."""
        ratios = np.array(self.seconds) / np.array(other.seconds)
        low, median, high = np.percentile(ratios, [25, 50, 75])
        return float(median), float(low), float(high)


@dataclass(frozen=True)
class Contender:
    """Work to be timed; ``scale`` is by how much the whole is larger than the part that is run."""

    name: str
    work: Callable[[], Any]
    scale: float = 1.0
    note: str = ""


def in_turn(contenders: list[Contender], repeats: int) -> list[Timed]:
    """A warm-up of each, then ``repeats`` rounds."""
    for contender in contenders:
        contender.work()
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(repeats):
        for contender in contenders:
            start = time.perf_counter()
            contender.work()
            seconds[contender.name].append((time.perf_counter() - start) * contender.scale)
    return [Timed(c.name, tuple(seconds[c.name]), c.note) for c in contenders]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {
            name: installed(name)
            for name in ("ntkscope", "torch", "numpy", "curvlinops-for-pytorch", "nngeometry")
        },
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{len(names)} × {names[0]}"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
