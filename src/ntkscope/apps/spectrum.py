"""What ``ntkscope spectrum`` shows: the largest eigenvalues, and sums over all of them."""

from __future__ import annotations

from typing import Any

from rich.table import Table

import ntkscope
from ntkscope.report import interval_text
from ntkscope.results import Estimate

__all__ = ["spectrum_numbers", "spectrum_table"]

#: Eigenvalues in the table.
_SHOWN = 10


def spectrum_numbers(kernel: ntkscope.NTK, spectrum: ntkscope.Spectrum, seed: int) -> dict[str, Any]:
    """Estimates by name, and the largest eigenvalues.

    Args:
        kernel: The kernel.
        spectrum: Its spectrum.
        seed: Of the probes.
    """
    pairs = kernel.eigenpairs(min(_SHOWN, kernel.n), seed=seed)
    return {
        "estimates": {
            "trace": spectrum.moment(1),
            "squared_frobenius_norm": spectrum.moment(2),
            "entropy": spectrum.entropy(),
        },
        "eigenvalues": pairs.values.tolist(),
        "errors": pairs.errors.tolist(),
        "cost": spectrum.cost + pairs.cost,
    }


def spectrum_table(numbers: dict[str, Any]) -> Table:
    """The same for the terminal."""
    table = Table("number", "value", "95% interval")
    for name, estimate in numbers["estimates"].items():
        table.add_row(name.replace("_", " "), estimate.value_text(), interval_text(estimate))
    for place, (value, error) in enumerate(zip(numbers["eigenvalues"], numbers["errors"], strict=True), 1):
        known = Estimate(value, error)
        table.add_row(f"eigenvalue {place}", known.value_text(), interval_text(known))
    return table
