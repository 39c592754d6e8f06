"""What ``ntkscope spectrum`` shows: the largest eigenvalues, and sums over all of them."""

from __future__ import annotations

from typing import Any

import ntkscope
from ntkscope.apps.tables import Grid
from ntkscope.report import interval_text
from ntkscope.results import Estimate

__all__ = ["plain_numbers", "spectrum_grid", "spectrum_numbers"]

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


def spectrum_grid(numbers: dict[str, Any]) -> Grid:
    """The same for the terminal."""
    known = {name.replace("_", " "): estimate for name, estimate in numbers["estimates"].items()}
    pairs = zip(numbers["eigenvalues"], numbers["errors"], strict=True)
    known |= {f"eigenvalue {place}": Estimate(*pair) for place, pair in enumerate(pairs, 1)}
    rows = tuple((name, e.value_text(), interval_text(e)) for name, e in known.items())
    return Grid(("number", "value ± 1 s.e.", "95% interval"), rows, f"cost: {numbers['cost']}")


def plain_numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """The same for JSON."""
    plain = {name: estimate.to_dict() for name, estimate in numbers["estimates"].items()}
    return {**numbers, "estimates": plain, "cost": numbers["cost"].to_dict()}
