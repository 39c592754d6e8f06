"""Writes the tables of docs/estimators.md from the JSON under results/estimators.

    python scripts/estimator_tables.py

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. The numbers come from
``python -m benchmarks.spectra``, ``benchmarks.coverage`` (and ``--rtol``) and ``benchmarks.products``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "estimators.md"
RESULTS = ROOT / "results" / "estimators"

Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    found: list[Row] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return found


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def in_order(values: list[Any], order: tuple[Any, ...]) -> list[Any]:
    """Without repeats; the named ones first and in their order."""
    seen = list(dict.fromkeys(values))
    return [value for value in order if value in seen] + [value for value in seen if value not in order]


KERNELS = ("mlp", "mnist", "gru", "flat", "polynomial", "slow", "fast", "step", "deep step")
METRICS = ("trace", "frobenius_norm", "effective_rank", "inner_product", "alignment")
TAIL_METHODS = (
    "auto",
    "xnystrace",
    "xtrace",
    "sketch",
    "nystrom",
    "hutch++",
    "hutchinson",
    "rhutch",
    "fhutch",
    "gram",
)
METHODS = ("hutchinson", "per-sample", "hutch++", "xtrace", "sketch", "xnystrace", "nystrom", "gram")


def words(name: str) -> str:
    return name.replace("_", " ")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def spectra() -> str:
    rows = rows_of("spectra")
    budgets = in_order(sorted(row["products"] for row in rows), ())
    cells = {
        (row["kernel"], row["metric"], row["method"], row["products"]): f"{row['error']:.0e}" for row in rows
    }
    lines = [
        [kernel, words(metric), method, *(cells.get((kernel, metric, method, b), "–") for b in budgets)]
        for kernel in in_order([row["kernel"] for row in rows], KERNELS)
        for metric in METRICS
        for method in METHODS
        if (kernel, metric, method, budgets[-1]) in cells
    ]
    return markdown(["spectrum", "metric", "method", *map(str, budgets)], lines)


def coverage() -> str:
    rows = rows_of("coverage")
    kernels = in_order([row["kernel"] for row in rows], KERNELS)
    budgets = sorted({row["products"] for row in rows})
    share = {
        (row["kernel"], row["metric"], row["method"], row["products"]): percent(row["covered"])
        for row in rows
    }
    lines = []
    for metric in METRICS:
        for method in METHODS:
            cells = [
                " ".join(share.get((kernel, metric, method, budget), "–") for budget in budgets)
                if any((kernel, metric, method, budget) in share for budget in budgets)
                else ""
                for kernel in kernels
            ]
            if any(cells):
                seeds = [row["seeds"] for row in rows if (row["metric"], row["method"]) == (metric, method)]
                lines.append([words(metric), method, *cells, str(min(seeds))])
    return markdown(["metric", "method", *kernels, "seeds"], lines)


def flat() -> str:
    """Root mean square errors over plain Hutchinson's."""
    rows = [row for row in rows_of("coverage") if row["kernel"] == "flat" and row["metric"] == "trace"]
    budgets = sorted({row["products"] for row in rows})
    error = {(row["method"], row["products"]): row["rms"] for row in rows}
    lines = [
        [method, *(f"{error[method, b] / error['hutchinson', b]:.2f}" for b in budgets)]
        for method in ("xnystrace", "xtrace", "hutch++")
    ]
    return markdown(["method", *map(str, budgets)], lines)


def tolerance() -> str:
    rows = rows_of("tolerance")
    lines = [
        [
            row["kernel"],
            words(metric),
            percent(row["within"]) + "%",
            f"{row['products']:.0f}",
            str(row["best"]),
            f"{row['products'] / row['best']:.1f}",
            str(row["seeds"]),
        ]
        for kernel in in_order([row["kernel"] for row in rows], KERNELS)
        for metric in METRICS
        for row in rows
        if (row["kernel"], row["metric"]) == (kernel, metric)
    ]
    return markdown(["kernel", "metric", "below 2%", "products", "best fixed", "ratio", "seeds"], lines)


MOMENTS = ("before", "after")


def products() -> str:
    found = json.loads((RESULTS / "mnist_products.json").read_text())
    lines = []
    for row in found["hutch++"]["rows"]:
        metric, index = row["metric"], row["kernel"]
        by = "per sample" if metric == "effective_rank" else "products"
        (mine,) = [
            one["error"]
            for one in found["sketch"]["rows"]
            if (one["metric"], one["kernel"], one["trace by"]) == (metric, index, by)
        ]
        lines.append(
            [
                words(metric),
                "both" if metric == "alignment" else MOMENTS[index],
                f"{found['sketch']['bounds'][metric]:.0e}",
                f"{mine:.1e}",
                *(_budget(row[key], row["most"]) for key in ("to the bound", "to our error")),
            ]
        )
    head = ["metric", "training", "bound", "sketch's error", "hutch++ to the bound", "hutch++ to that error"]
    return markdown(head, lines)


def _budget(products: int | None, most: int) -> str:
    if products is None:
        return "–"
    return f"more than {most:,}" if products >= most else f"{products:,}"


def times() -> str:
    found = json.loads((RESULTS / "mnist_products.json").read_text())["time"]
    lines = []
    for row in found["rows"]:
        median, low, high = row["speedup"]
        quartiles = " to ".join(f"{value:.2g}" for value in row["quartiles"])
        speedup = f"{median:.1f} ({low:.1f} to {high:.1f})"
        lines.append([row["name"], row["note"], f"{row['median']:.2g} ({quartiles})", speedup])
    return markdown(["way", "", "seconds, median (quartiles)", "times faster"], lines)


def heavy() -> str:
    rows = [row for row in rows_of("heavy_tails") if row["products"] == "rtol"]
    kernels = ("log-normal", "outlier", "two outputs", "three active")
    lines = []
    for metric in METRICS:
        of_metric = [row for row in rows if row["metric"] == metric]
        for method in in_order([row["method"] for row in of_metric], TAIL_METHODS):
            found = {row["kernel"]: row for row in of_metric if row["method"] == method}
            cells = [
                f"{100 * row['over2']:.2g}% {row['over5']} ({row['spent']:,.0f})" if row else "–"
                for row in map(found.get, kernels)
            ]
            seeds = min(row["seeds"] for row in found.values())
            lines.append([words(metric), method, *cells, str(seeds)])
    return markdown(["metric", "method", *kernels, "seeds"], lines)


def near() -> str:
    rows = [row for row in rows_of("heavy_tails") if row["products"] != "rtol"]
    sizes = sorted({int(row["kernel"][2:]) for row in rows})
    lines = []
    for metric in METRICS:
        of_metric = [row for row in rows if row["metric"] == metric]
        for method in in_order([row["method"] for row in of_metric], TAIL_METHODS):
            found = {
                (int(row["kernel"][2:]), row["products"]): row["covered"]
                for row in of_metric
                if row["method"] == method
            }
            cells = [f"{percent(found.get((n, n - 1)))} {percent(found.get((n, n // 2)))}" for n in sizes]
            seeds = min(row["seeds"] for row in of_metric)
            lines.append([words(metric), method, *cells, str(seeds)])
    return markdown(["metric", "method", *(f"n = {n}" for n in sizes), "seeds"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "spectra": spectra,
    "flat": flat,
    "coverage": coverage,
    "tolerance": tolerance,
    "products": products,
    "times": times,
    "heavy": heavy,
    "near": near,
}

_MARKED = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def table(name: str) -> str:
    """The Markdown of a table."""
    try:
        return TABLES[name]()
    except (FileNotFoundError, KeyError):
        return "Not measured yet."


def filled(page: str) -> str:
    """The page with every table made anew."""
    return _MARKED.sub(lambda found: f"<!-- table: {found[1]} -->\n\n{table(found[1])}\n\n<!-- end -->", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
