"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import ntkscope
from ntkscope.results import Cost, Estimate

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ALL_METRICS",
    "METRICS",
    "SYMBOLS",
    "TITLES",
    "Alignment",
    "KernelNumbers",
    "Report",
    "comparison_table",
    "document",
    "interval_text",
    "kernel_table",
    "measure_kernel",
    "to_json",
]

#: How people call every metric, in the order of tables.
TITLES = {
    "trace": "trace",
    "frobenius_norm": "Frobenius norm",
    "effective_rank": "effective rank",
    "alignment": "alignment",
}

#: What every metric is.
SYMBOLS = {
    "trace": "tr K",
    "frobenius_norm": "‖K‖",
    "effective_rank": "(tr K)² / ‖K‖²",
    "alignment": "cos(K, K′)",
}

#: The metrics of one kernel alone, in the order of tables and files.
METRICS = tuple(name for name in TITLES if name != "alignment")

#: As ``--metrics`` takes them.
ALL_METRICS = ",".join(METRICS)

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
    """

    name: str
    kernel: ntkscope.NTK
    metrics: dict[str, Estimate]
    cost: Cost

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
    """The numbers of some kernels, and their alignments."""

    kernels: tuple[KernelNumbers, ...]
    alignments: tuple[Alignment, ...] = ()

    def estimates(self) -> list[Estimate]:
        """All of them."""
        own = [estimate for kernel in self.kernels for estimate in kernel.metrics.values()]
        return own + [alignment.estimate for alignment in self.alignments]

    def notes(self) -> list[str]:
        """What a reader should know besides the numbers, each once."""
        notes = [f"{e.quantity.replace('_', ' ')}: {e.note}" for e in self.estimates() if e.note]
        return list(dict.fromkeys(notes))

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended a run early."""
        return any("interrupted" in estimate.note for estimate in self.estimates())

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


# JSON.


def document(command: str, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """The JSON document of a command, as docs/json.md describes it.

    Args:
        command: ``"measure"``, ``"compare"`` or ``"demo"``.
        arguments: What it was called with.
        report: What it found.
    """
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
        **report.to_dict(),
    }


def to_json(value: dict[str, Any]) -> str:
    """Strict JSON, with what is not finite as null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


# Tables.


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


def kernel_table(numbers: KernelNumbers) -> Table:
    """One kernel: a row for every metric."""
    table = _table("metric", "value ± 1 s.e.", "95% interval", "method")
    for metric, estimate in numbers.metrics.items():
        table.add_row(TITLES[metric], estimate.value_text(), interval_text(estimate), estimate.method)
    table.caption = f"cost: {numbers.cost}"
    table.caption_justify = "left"
    return table


def comparison_table(report: Report) -> Table:
    """Several kernels, side by side, with the alignment of the first and each of the others."""
    table = _table("metric", *(kernel.name for kernel in report.kernels), "method")
    for metric in report.kernels[0].metrics:
        found = [kernel.metrics[metric] for kernel in report.kernels]
        table.add_row(TITLES[metric], *(e.value_text() for e in found), _methods(found))
    by_pair = {alignment.between: alignment.estimate for alignment in report.alignments}
    if by_pair:
        first = report.kernels[0].name
        cells = ["1" if k.name == first else by_pair[first, k.name].value_text() for k in report.kernels]
        table.add_row(TITLES["alignment"], *cells, _methods(list(by_pair.values())))
    costs = "; ".join(f"{kernel.name} {kernel.cost}" for kernel in report.kernels)
    table.caption = f"cost: {costs}"
    table.caption_justify = "left"
    return table


def _methods(estimates: Sequence[Estimate]) -> str:
    return " / ".join(dict.fromkeys(estimate.method for estimate in estimates))


def _table(first: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption_style="")
    table.add_column(first, no_wrap=True)
    for column in columns:
        words = column == "method"
        table.add_column(column, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    return table
