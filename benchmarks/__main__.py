"""``python -m benchmarks``: times every way to the same numbers in one run, prints tables, writes JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.speed import SUITES, Section
from benchmarks.timing import machine


def main(
    suites: Annotated[
        list[str] | None, typer.Argument(help=f"Any of {', '.join(SUITES)}; all if none.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds; medians and quartiles are over these.")] = 10,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("results/speed.json"),
) -> None:
    """Time this library's ways, the paper's methods, and peers where they are installed."""
    console = Console()
    chosen = suites or list(SUITES)
    unknown = set(chosen) - set(SUITES)
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(SUITES)}")
    known = json.loads(out.read_text()) if out.exists() else {"sections": {}}
    for suite in chosen:
        for section in SUITES[suite](repeats):
            console.print(_table(section))
            known["sections"][section.title] = _plain(section, repeats)
    known["machine"] = machine()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    partial.replace(out)
    console.print(f"wrote {out}")


def _table(section: Section) -> Table:
    baseline = section.timed(section.baseline)
    table = Table(title=section.title)
    for name in ("", "seconds, median", "quartiles", f"ratio to {section.baseline}"):
        table.add_column(name, justify="left" if not name else "right")
    for timed in section.times:
        low, high = timed.quartiles
        ratio, first, third = timed.ratio_to(baseline)
        table.add_row(
            timed.name,
            f"{timed.median:.3g}",
            f"{low:.3g} to {high:.3g}",
            f"{ratio:.3g} ({first:.3g} to {third:.3g})",
        )
    return table


def _plain(section: Section, repeats: int) -> dict[str, object]:
    baseline = section.timed(section.baseline)
    return {
        "repeats": repeats,
        "baseline": section.baseline,
        "facts": section.facts,
        "times": [
            dataclasses.asdict(timed)
            | {"median": timed.median, "quartiles": timed.quartiles, "ratio": timed.ratio_to(baseline)}
            for timed in section.times
        ],
    }


if __name__ == "__main__":
    typer.run(main)
