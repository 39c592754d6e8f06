"""The table: exact values, exact ways, time to an accuracy, and the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ntkscope import report
from ntkscope.apps.paper.analysis import TOLERANCES, baseline_seconds, spread, time_to
from ntkscope.apps.paper.comparison import published_rows
from ntkscope.apps.paper.experiments import KERNEL_METRICS, METHOD_NAMES
from ntkscope.apps.paper.store import Results
from ntkscope.apps.paper.words import (
    TITLES,
    count,
    duration,
    error_words,
    factor,
    machine_words,
    percent,
)
from ntkscope.files import write_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Block", "blocks", "markdown", "print_table", "write_table"]

_EXACT = ("ntk-products", "n-vjps", "p-jvps", "exact")
_ESTIMATES = ("hutch++", "rhutch", "fhutch", "per-sample", "sketch", "nystrom", "exact", "tolerance")


@dataclass(frozen=True)
class Block:
    """One table: a title, column heads, rows of text, and a note below."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def blocks(results: Results) -> Iterator[Block]:
    """The tables that the measurements allow for."""
    present = [name for name in TITLES if name in results.experiments()]
    yield _values(results, present)
    yield _exact_ways(results, present)
    for experiment in present:
        yield from _targets(results, experiment)
    yield Block(
        "The paper's published figures beside ours",
        ("quantity", "paper", "its methods here", "this library", "remark"),
        published_rows(results),
        "Published: arXiv 2511.10796, read from its text and plots.",
    )


def _metrics(results: Results, experiment: str) -> list[str]:
    return [
        metric for metric in ("trace", *KERNEL_METRICS) if results.curve(experiment, "ntk-products", metric)
    ]


def _values(results: Results, present: list[str]) -> Block:
    rows = []
    for experiment in present:
        size = f"n = {results.fact(experiment, 'n'):,.0f}, p = {results.fact(experiment, 'p'):,.0f}"
        for metric in _metrics(results, experiment):
            curve = results.curve(experiment, "exact", metric)
            error = error_words(float(np.nanmax(curve.errors))) if curve else "–"
            value = f"{results.fact(experiment, metric):,.9g}"
            rows.append((TITLES[experiment], size, report.TITLES[metric], value, error))
    return Block(
        "Exact values",
        ("experiment", "size", "metric", "exact value", "float32 is off by"),
        rows,
        "Exact by structure in float64; the last column: the same in float32, in which all else runs.",
    )


def _exact_ways(results: Results, present: list[str]) -> Block:
    rows = []
    for experiment in present:
        for metric in _metrics(results, experiment):
            base = baseline_seconds(results, experiment, metric)
            for method in _EXACT:
                curve = results.curve(experiment, method, metric)
                if curve is None:
                    continue
                found = spread(curve.seconds[-1:])
                seconds = float(found.median[0])
                part = f"{curve.settings[-1]:,.0f} columns run, scaled" if curve.scaled else "run in full"
                rows.append(
                    (TITLES[experiment], report.TITLES[metric], METHOD_NAMES[method], duration(seconds),
                     f"{duration(float(found.low[0]))} to {duration(float(found.high[0]))}",
                     factor(base / seconds), part)
                )  # fmt: skip
        built = results.curve(experiment, "construction", _metrics(results, experiment)[0])
        if built is not None:
            seconds = float(np.nanmedian(built.seconds))
            rows.append(
                (TITLES[experiment], "–", METHOD_NAMES["construction"], duration(seconds), "", "", "")
            )
    return Block(
        "Every exact way",
        ("experiment", "metric", "way", "time", "quartiles", "speed-up", "part"),
        rows,
        "n NTK products are the paper's exact way: n for the trace, 2n for the norm, 3n for the effective "
        "rank, 6n for the alignment. Construction makes the kernels and finds their structure, once; it is "
        "not in the other times.",
    )


def _targets(results: Results, experiment: str) -> Iterator[Block]:
    for metric in _metrics(results, experiment):
        rows = []
        base = baseline_seconds(results, experiment, metric)
        for method in _ESTIMATES:
            curve = results.curve(experiment, method, metric)
            if curve is None:
                continue
            cells = [METHOD_NAMES[method]]
            for tolerance in TOLERANCES:
                target = time_to(curve, tolerance)
                if target is None:
                    cells.append("not reached")
                    continue
                products = _products(target.vjps, target.jvps)
                cells.append(f"{duration(target.seconds)}, {products} ({factor(base / target.seconds)})")
            rows.append(tuple(cells))
        yield Block(
            f"{TITLES[experiment]}, {report.TITLES[metric]}: time, products (speed-up) to an error of",
            ("method", *(percent(tolerance) for tolerance in TOLERANCES)),
            rows,
            "The quickest budget of the grid whose median error is within it.",
        )


def _products(vjps: float, jvps: float) -> str:
    if vjps == jvps:
        return count(vjps, "NTK product")
    parts = [count(number, name) for number, name in ((vjps, "VJP"), (jvps, "JVP")) if number]
    return " and ".join(parts)


# To the terminal and to a file.


def print_table(results: Results, console: Console) -> None:
    """All tables, as wide as the terminal."""
    from rich.table import Table

    console.print(machine_words(results), highlight=False)
    for block in blocks(results):
        table = Table(title=block.title, title_justify="left", caption=block.note, caption_justify="left")
        for head in block.heads:
            table.add_column(head, overflow="fold")
        for row in block.rows:
            table.add_row(*row)
        console.print(table)


def markdown(block: Block) -> str:
    """One table."""
    lines = [f"| {' | '.join(block.heads)} |", f"| {' | '.join('---' for _ in block.heads)} |"]
    lines += [f"| {' | '.join(row)} |" for row in block.rows]
    return "\n".join(lines) + "\n" + (f"\n{block.note}\n" if block.note else "")


def write_table(results: Results, path: Path) -> None:
    """All tables as Markdown."""
    parts = [f"# The experiments of arXiv 2511.10796\n\n{machine_words(results)}\n"]
    parts += [f"## {block.title}\n\n{markdown(block)}" for block in blocks(results)]
    write_text(path, "\n".join(parts))
