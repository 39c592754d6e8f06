"""What was measured, of kernels by their names, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ntkscope
from ntkscope.results import Cost, Estimate, Split
from ntkscope.words import ALL_METRICS, METRICS, SYMBOLS, TITLES

__all__ = [
    "ALL_METRICS",
    "METRICS",
    "SYMBOLS",
    "TITLES",
    "Alignment",
    "KernelNumbers",
    "Report",
    "document",
    "interval_text",
    "measure_kernel",
    "measure_kernels",
    "to_json",
]

#: Of the JSON documents. It grows when a field is renamed, removed or changes its meaning.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class KernelNumbers:
    """The metrics of one kernel.

    Attributes:
        name: Short name, such as a checkpoint's.
        kernel: The NTK that was measured.
        metrics: Estimates by metric.
        cost: Of all of them together.
        splits: Metrics in parts, by metric, where they were asked for.
    """

    name: str
    kernel: ntkscope.NTK
    metrics: dict[str, Estimate]
    cost: Cost
    splits: dict[str, Split] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "n": self.kernel.n,
            "n_params": self.kernel.n_params,
            "output_shape": list(self.kernel.output_shape),
            "dtype": str(self.kernel.dtype).removeprefix("torch."),
            "device": str(self.kernel.device),
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "splits": {name: split.to_dict() for name, split in self.splits.items()},
            "cost": self.cost.to_dict(),
        }


@dataclass(frozen=True)
class Alignment:
    """The alignment of two kernels, by their names."""

    between: tuple[str, str]
    estimate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"between": list(self.between), **self.estimate.to_dict()}


@dataclass(frozen=True)
class Report:
    """The numbers of some kernels, and their alignments.

    Attributes:
        kernels: One after the other.
        alignments: Of pairs of them.
        stopped: Whether Ctrl-C ended it before all kernels were measured.
    """

    kernels: tuple[KernelNumbers, ...]
    alignments: tuple[Alignment, ...] = ()
    stopped: bool = False

    def estimates(self) -> list[Estimate]:
        """All of them."""
        own = [estimate for kernel in self.kernels for estimate in kernel.metrics.values()]
        splits = [split for kernel in self.kernels for split in kernel.splits.values()]
        parts = [part for split in splits for part in split.values()]
        return own + parts + [alignment.estimate for alignment in self.alignments]

    def notes(self) -> list[str]:
        """What a reader should know besides the numbers, each once."""
        notes = [f"{e.quantity.replace('_', ' ')}: {e.note}" for e in self.estimates() if e.note]
        return list(dict.fromkeys(notes))

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended a run early."""
        return self.stopped or any("interrupted" in estimate.note for estimate in self.estimates())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kernels": [kernel.to_dict() for kernel in self.kernels],
            "alignments": [alignment.to_dict() for alignment in self.alignments],
        }


def measure_kernel(
    name: str,
    kernel: ntkscope.NTK,
    metrics: Sequence[str] = METRICS,
    others: Sequence[tuple[str, ntkscope.NTK]] = (),
    **options: Any,
) -> tuple[KernelNumbers, tuple[Alignment, ...]]:
    """Some metrics of a kernel and its alignment with others, from shared work where it can be.

    Args:
        name: Of the kernel.
        kernel: What is measured.
        metrics: Which of :data:`METRICS`.
        others: Other kernels, by name.
        **options: As :meth:`ntkscope.NTK.measure` takes them.
    """
    if len(metrics) == 1 and not others:
        single: Callable[..., Estimate] = getattr(kernel, metrics[0])
        estimate = single(**options)
        return KernelNumbers(name, kernel, {metrics[0]: estimate}, estimate.cost), ()
    found = kernel.measure([other for _, other in others], **options)
    numbers = KernelNumbers(name, kernel, {metric: found[metric] for metric in metrics}, found.cost)
    pairs = zip(others, found.alignment, strict=True)
    return numbers, tuple(Alignment((name, other), estimate) for (other, _), estimate in pairs)


def measure_kernels(
    kernels: Mapping[str, ntkscope.NTK], metrics: Sequence[str] = tuple(TITLES), **options: Any
) -> Report:
    """Some metrics of several kernels by one method, and the alignment of every pair if it is among them.

    The work is shared where the method can do that; else one kernel is measured after the other, and
    Ctrl-C keeps those that are done.

    Args:
        kernels: By name.
        metrics: Which of :data:`TITLES`.
        **options: As :func:`ntkscope.measure_all` takes them.
    """
    from ntkscope.measure import METHODS

    own = tuple(metric for metric in metrics if metric in METRICS)
    if options.get("method", "auto") not in METHODS["measure_all"]:
        return _one_after_the_other(kernels, own, "alignment" in metrics, options)
    before = {name: kernel.cost for name, kernel in kernels.items()}
    found = ntkscope.measure_all(kernels, metrics=metrics, **options)
    numbers = []
    for (name, kernel), one in zip(kernels.items(), found, strict=True):
        cost = dataclasses.replace(kernel.cost - before[name], seconds=one.cost.seconds)
        numbers.append(KernelNumbers(name, kernel, {metric: one[metric] for metric in own}, cost))
    names = list(kernels)
    pairs = [
        Alignment((name, other), estimate)
        for place, (name, one) in enumerate(zip(names, found, strict=True))
        for other, estimate in zip(one.others, one.pairs.get("alignment", ()), strict=True)
        if names.index(other) > place
    ]
    return Report(tuple(numbers), tuple(pairs))


def _one_after_the_other(
    kernels: Mapping[str, ntkscope.NTK], metrics: Sequence[str], aligned: bool, options: dict[str, Any]
) -> Report:
    numbers: list[KernelNumbers] = []
    pairs: list[Alignment] = []
    names = list(kernels)
    for place, name in enumerate(names):
        others = [(other, kernels[other]) for other in names[place + 1 :]] if aligned else []
        try:
            one, found = measure_kernel(name, kernels[name], metrics, others, **options)
        except KeyboardInterrupt:
            if not numbers:
                raise
            return Report(tuple(numbers), tuple(pairs), stopped=True)
        numbers.append(one)
        pairs += found
        if Report((one,), found).interrupted:
            return Report(tuple(numbers), tuple(pairs), stopped=True)
    return Report(tuple(numbers), tuple(pairs))


# JSON.


def document(command: str, arguments: dict[str, Any], content: Report | dict[str, Any]) -> dict[str, Any]:
    """The JSON document of a command, as docs/json.md describes it.

    Args:
        command: ``"measure"``, ``"compare"``, ``"spectrum"``, ``"explain"`` or ``"demo"``.
        arguments: What it was called with.
        content: What it found.
    """
    import numpy as np
    import torch

    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "versions": {
            "ntkscope": ntkscope.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "arguments": arguments,
        **(content.to_dict() if isinstance(content, Report) else content),
    }


def to_json(value: dict[str, Any]) -> str:
    """Strict JSON, with what is not finite as null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) or hasattr(value, "dtype"):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def interval_text(estimate: Estimate) -> str:
    """The 95% interval, in as many digits as it takes to tell its ends apart."""
    if estimate.stderr == 0:
        return "exact"
    low, high = estimate.interval()
    if not (math.isfinite(low) and math.isfinite(high)):
        return "unknown"
    size = max(abs(low), abs(high), 1e-300)
    digits = min(max(3, 2 - math.floor(math.log10(max((high - low) / size, 1e-12)))), 9)
    return f"{low:.{digits}g} to {high:.{digits}g}"
