"""Results as rows of a table, for pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ntkscope.results.estimate import Estimate

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["frame", "record", "words"]


def words(name: str) -> str:
    """A metric's name as people write it."""
    return name.replace("_", " ")


def record(metric: str, other: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate as a row: the value, its error, and how it was found."""
    low, high = estimate.interval()
    return {
        "metric": metric,
        "other": other,
        "value": float(estimate.value),
        "stderr": estimate.stderr,
        "low95": low,
        "high95": high,
        "method": estimate.method,
        "converged": estimate.converged,
        "seed": estimate.seed,
        "note": estimate.note,
    }


def frame(records: Sequence[dict[str, Any]]) -> DataFrame:
    """Rows as a DataFrame, whose columns are there even if no row is.

    Raises:
        ImportError: If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "to_pandas needs pandas, which is not installed; run pip install pandas, or take records()"
        ) from error
    table = pd.DataFrame(list(records))
    # None where no error is known, which pandas would keep as an object.
    return table.astype({"stderr": "float64"}) if len(table) else table
