"""What ``ntkscope measure`` finds of a kernel: shared metrics, those of eigenvalues, and parts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ntkscope import report
from ntkscope.apps.options import parse_by
from ntkscope.report import KernelNumbers
from ntkscope.results import Cost, Estimate, Split
from ntkscope.words import METRICS, SPECTRAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    import ntkscope

__all__ = ["numbers_of_kernel"]


def numbers_of_kernel(
    name: str, kernel: ntkscope.NTK, metrics: Sequence[str], by: str | None, **options: Any
) -> KernelNumbers:
    """Metrics of a kernel, in the order given, and of its parts.

    Args:
        name: Of the kernel.
        kernel: What is measured.
        metrics: Which of :data:`~ntkscope.words.METRICS`, which share their work, and of
            :data:`~ntkscope.words.SPECTRAL`, each of which is found on its own.
        by: What the parts are, as ``--by`` has it; those of eigenvalues have none.
        **options: ``method``, ``products``, ``rtol``, ``seed`` and ``progress``.
    """
    shared = [metric for metric in metrics if metric in METRICS]
    splits = {} if by is None else {metric: _split(kernel, metric, by, options) for metric in shared}
    trace = splits["trace"].whole if "trace" in splits else None
    if trace is not None and shared == ["trace"]:
        # The parts come from the products of the whole.
        numbers = KernelNumbers(name, kernel, {"trace": trace}, trace.cost)
    elif shared:
        numbers, _ = report.measure_kernel(name, kernel, shared, **options)
        numbers = _with(numbers, {}, [split.cost for split in splits.values()])
    else:
        numbers = KernelNumbers(name, kernel, {}, Cost())
    for metric in metrics:
        if metric in SPECTRAL:
            found = _spectral(kernel, metric, options)
            numbers = _with(numbers, {metric: found}, [found.cost])
    ordered = {metric: numbers.metrics[metric] for metric in metrics if metric in numbers.metrics}
    return dataclasses.replace(numbers, metrics=ordered, splits=splits)


def _with(numbers: KernelNumbers, metrics: dict[str, Estimate], costs: Sequence[Cost]) -> KernelNumbers:
    return dataclasses.replace(
        numbers, metrics=numbers.metrics | metrics, cost=sum(costs, start=numbers.cost)
    )


def _split(kernel: ntkscope.NTK, metric: str, by: str, options: dict[str, Any]) -> Split:
    found: Split = kernel.split(metric, parse_by(by), **options)
    return found


def _spectral(kernel: ntkscope.NTK, metric: str, options: dict[str, Any]) -> Estimate:
    """A number of eigenvalues, by its own verb."""
    if metric != "operator_norm":
        found: Estimate = getattr(kernel, metric)(**options)
        return found
    # It has a bound of its error in place of a standard error, and a tolerance of its own.
    chosen = {key: options[key] for key in ("method", "rtol", "seed") if key in options}
    return kernel.operator_norm(max_products=options.get("products"), **chosen)
