"""What was measured as text: as a table where that fits, turned or as a list where it does not.

Nothing is cropped: where the output is no terminal a table is as wide as it must be.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ntkscope.report import KernelNumbers, Report, interval_text
from ntkscope.results import Estimate
from ntkscope.words import TITLES, title_of

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Grid",
    "alignment_grid",
    "comparison_grid",
    "kernel_grid",
    "parts_grid",
    "print_grid",
    "report_grids",
]

#: A row of this name tells how the numbers were found; its words may be broken into lines.
_METHOD = "method"


@dataclass(frozen=True)
class Grid:
    """Cells in rows and columns, with what stands below them.

    Attributes:
        columns: Their names; the first is that of the rows' names.
        rows: Cells as many as columns, the first the row's name.
        caption: A line below.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def turned(self) -> Grid:
        """Rows as columns."""
        columns, *rows = zip(self.columns, *self.rows, strict=True)
        return Grid(columns, tuple(rows), self.caption)


def kernel_grid(numbers: KernelNumbers) -> Grid:
    """One kernel: a row for every metric."""
    rows = [
        (title_of(metric), estimate.value_text(), interval_text(estimate), estimate.method)
        for metric, estimate in numbers.metrics.items()
    ]
    columns = ("metric", "value ± 1 s.e.", "95% interval", _METHOD)
    return Grid(columns, tuple(rows), f"cost: {numbers.cost}")


def parts_grid(numbers: KernelNumbers) -> Grid:
    """A row for every part: each of the metrics that were split, and the share of the trace."""
    splits = numbers.splits
    first = next(iter(splits.values()))
    trace = splits.get("trace")
    shares = {} if trace is None else trace.shares()
    rows = []
    for part in first:
        share = [f"{100 * shares[part]:.3g}%"] if shares else []
        found = [split[part] for split in splits.values()]
        rows.append((part, *(one.value_text() for one in found), *share, _methods(found)))
    columns = (first.by, *map(title_of, splits), *(["share of trace"] if shares else []), _METHOD)
    return Grid(columns, tuple(rows))


def comparison_grid(report: Report) -> Grid:
    """Several kernels, side by side, and the alignment of the first with each of the others."""
    rows = []
    for metric in report.kernels[0].metrics:
        found = [kernel.metrics[metric] for kernel in report.kernels]
        rows.append((TITLES[metric], *(e.value_text() for e in found), _methods(found)))
    if report.alignments:
        first = report.kernels[0].name
        known = {alignment.between: alignment.estimate for alignment in report.alignments}
        cells = ["1" if k.name == first else _cell(known.get((first, k.name))) for k in report.kernels]
        methods = _methods([e for pair, e in known.items() if pair[0] == first])
        rows.append((f"alignment with {first}", *cells, methods))
    costs = "; ".join(f"{kernel.name} {kernel.cost}" for kernel in report.kernels)
    names = tuple(kernel.name for kernel in report.kernels)
    return Grid(("metric", *names, _METHOD), tuple(rows), f"cost: {costs}")


def alignment_grid(report: Report) -> Grid:
    """The alignment of every pair."""
    known = {alignment.between: alignment.estimate for alignment in report.alignments}
    known |= {(other, one): estimate for (one, other), estimate in known.items()}
    names = [kernel.name for kernel in report.kernels]
    rows = [
        (one, *("1" if one == other else _cell(known.get((one, other))) for other in names)) for one in names
    ]
    return Grid(("alignment", *names), tuple(rows))


def report_grids(report: Report) -> list[Grid]:
    """The tables of a report: of more than two kernels their alignments have one of their own."""
    if len(report.kernels) == 1 and not report.alignments:
        numbers = report.kernels[0]
        return [kernel_grid(numbers), *([parts_grid(numbers)] if numbers.splits else [])]
    matrix = [alignment_grid(report)] if len(report.kernels) > 2 and report.alignments else []
    return [comparison_grid(report), *matrix]


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else estimate.value_text()


def _methods(estimates: Sequence[Estimate]) -> str:
    return " / ".join(dict.fromkeys(estimate.method for estimate in estimates))


# Printing.


def print_grid(console: Console, grid: Grid) -> None:
    """Prints it as a table, as it stands or turned, or else as a list of every row's cells."""
    from rich.console import Console
    from rich.text import Text

    width = _width(console)
    for shape in (grid, grid.turned()):
        table = _table(shape)
        # A console as wide as it takes: what does not fit is judged here, never cropped there.
        needed = table.__rich_measure__(console, console.options.update_width(_ENDLESS))
        if width is None:
            Console(file=console.file, width=needed.maximum, quiet=console.quiet).print(table)
            break
        if needed.minimum <= width:
            console.print(table)
            break
    else:
        for name, *cells in grid.rows:
            console.print(Text(name, style="bold"))
            for column, cell in zip(grid.columns[1:], cells, strict=True):
                console.print(Text(f"  {column}: {cell}"), soft_wrap=width is None)
    if grid.caption:
        console.print(Text(grid.caption), soft_wrap=width is None)


#: Wider than any table.
_ENDLESS = 100_000


def _width(console: Console) -> int | None:
    """Columns that there are; ``None`` where lines may be of any length, as in a pipe."""
    return console.width if console.is_terminal or os.environ.get("COLUMNS", "").isdigit() else None


def _table(grid: Grid) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(grid.columns):
        words = column == _METHOD
        justify: Any = "left" if words or place == 0 else "right"
        widest = max(cell_len(cells[place]) for cells in (grid.columns, *grid.rows))
        table.add_column(Text(column), justify=justify, min_width=None if words else widest)
    for cells in grid.rows:
        table.add_row(*(Text(cell) for cell in cells))
    return table
