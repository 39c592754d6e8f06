"""A run of training as it was watched: its looks in order, its curves, its fingerprints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.fingerprints import Fingerprint, alignment_matrix
from ntkscope.fingerprints.many import Matrix
from ntkscope.tracking.look import Look

__all__ = ["Curve", "Run"]


@dataclass(frozen=True, eq=False)
class Curve:
    """One number over training.

    Attributes:
        steps: Of the looks that have it, shape (k,).
        values: Shape (k,); nan where a look found no number.
        low: Lower ends of 95% intervals, shape (k,); nan where unknown.
        high: Upper ends, shape (k,).
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """What was watched of one run of training.

    Attributes:
        name: Of the run.
        id: Tells it from other runs.
        looks: In the order of steps.
        settings: How it was watched, and the sizes of the kernel.
        config: What the user said about the run, such as the learning rate.
        versions: Of the packages.
        failures: Steps at which the kernel could not be measured, with the reason.
        problems: What is wrong with its log, a sentence each.
        kept: Fingerprints by step, where they are in memory.
        folder: That the files of fingerprints are relative to.
    """

    name: str
    id: str
    looks: Sequence[Look]
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    kept: Mapping[int, Fingerprint] = field(default_factory=dict, repr=False)
    folder: Path = Path()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the numbers that any look has, in the order of the first."""
        return tuple(dict.fromkeys(name for look in self.looks for name in look.metrics))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, if they were kept apart."""
        return tuple(dict.fromkeys(layer for look in self.looks for layer in look.layers))

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the plain numbers that came with the looks, such as the loss."""
        return tuple(dict.fromkeys(name for look in self.looks for name in look.values))

    def curve(self, name: str, layer: str | None = None) -> Curve:
        """One number over training, with its 95% intervals.

        Args:
            name: Of a metric or a plain number.
            layer: The layer's part of the kernel instead of the whole.
        """
        rows = []
        for look in self.looks:
            metrics = look.metrics if layer is None else look.layers.get(layer, {})
            if name in metrics:
                low, high = metrics[name].interval()
                rows.append((look.step, metrics[name].value, low, high))
            elif layer is None and name in look.values:
                rows.append((look.step, look.values[name], math.nan, math.nan))
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)
        ends = np.where(np.isfinite(table[:, 2:]), table[:, 2:], np.nan)
        return Curve(table[:, 0].astype(np.int64), table[:, 1], ends[:, 0], ends[:, 1])

    def fingerprints(self, most: int | None = None) -> dict[int, Fingerprint]:
        """Fingerprints by step, evenly chosen if there are more than ``most``.

        Raises:
            FileNotFoundError: If a file of the log is gone.
            ValueError: If one cannot be read.
        """
        steps = [look.step for look in self.looks if look.fingerprint or look.step in self.kept]
        if most is not None and len(steps) > most:
            steps = [steps[index] for index in np.linspace(0, len(steps) - 1, most).round().astype(int)]
        by_step = {look.step: look for look in self.looks}
        return {
            step: self.kept[step]
            if step in self.kept
            else Fingerprint.load(self.folder / str(by_step[step].fingerprint))
            for step in steps
        }

    def alignment_matrix(self, *, errors: bool = False, most: int | None = None) -> tuple[list[int], Matrix]:
        """cos(K_s, K_t) of all pairs of looks from their fingerprints, and the steps.

        Args:
            errors: Whether standard errors are wanted, which is nearly all of the work.
            most: Of that many looks at most, evenly chosen.

        Raises:
            FileNotFoundError: As :meth:`fingerprints`.
            ValueError: As :meth:`fingerprints`, and if there are none.
        """
        found = self.fingerprints(most)
        return list(found), alignment_matrix(list(found.values()), errors=errors)
