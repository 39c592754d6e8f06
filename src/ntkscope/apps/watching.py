"""The commands about training: report and track."""

from __future__ import annotations

import dataclasses
import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ntkscope.apps import options as opt
from ntkscope.apps.failures import INTERRUPTED
from ntkscope.files import check_distinct, check_writable, make_folder

if TYPE_CHECKING:
    from ntkscope.tracking import Look, Run

__all__ = ["report", "track"]

Out = Annotated[Path | None, typer.Option("--out", "-o", help="The page to write, .html.")]
Figures = Annotated[Path | None, typer.Option(help="Folder for every figure as PNG and SVG.")]


def report(
    logs: Annotated[list[Path], typer.Argument(metavar="RUN.jsonl...", help="Logs that a Tracker wrote.")],
    out: Out = None,
    figures: Figures = None,
    debug: opt.Debug = False,
) -> None:
    """Make a page of what trackers logged, several runs overlaid; it opens offline."""
    check_report(logs, out, figures)
    from ntkscope.tracking import read_runs

    runs = distinct([run for log in logs for run in read_runs(log)])
    for run in runs:
        for problem in run.problems:
            print(f"note: {run.name}: {problem}")
    deliver(runs, out, figures)


def track(
    factory: opt.Factory,
    checkpoints: Annotated[
        list[str],
        typer.Option("--checkpoints", "-c", help="Such as 'ckpt/*.safetensors'; may be repeated."),
    ],
    inputs: opt.Inputs = None,
    targets: Annotated[
        Path | None, typer.Option(help="Targets of the inputs: one array of numbers or classes.")
    ] = None,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Measure every layer's part too.")] = False,
    probes: Annotated[int, typer.Option(help="Random signs of every sample.", min=2)] = 2,
    log: Annotated[
        Path | None, typer.Option(help="Log to write, .jsonl, with fingerprints beside it.")
    ] = None,
    out: Out = None,
    figures: Figures = None,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    train_mode: opt.TrainMode = False,
    debug: opt.Debug = False,
) -> None:
    """Follow the kernel over checkpoints after the fact: curves and the alignment of every pair."""
    from ntkscope.apps.subject import Subject
    from ntkscope.tracking import natural_order, steps_of, watch_series

    paths = natural_order(_found(checkpoints))
    check_report([log] if log else [], out, figures)
    y = None if targets is None else _one_array(targets)
    subject = Subject(factory, inputs, layer, output, batch_dim, dtype, device, seed, train_mode)
    run = watch_series(
        subject.moments(paths),
        steps_of(paths),
        targets=y,
        by="layer" if by_layer else None,
        probes=probes,
        seed=seed,
        name=log.stem if log else factory,
        log=log,
        config={"factory": factory, "checkpoints": [path.name for path in paths]},
        tell=lambda look: print(_line(look), flush=True),
    )
    deliver([run], out, figures)
    if run.problems:
        print(*run.problems, sep="\n", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _found(patterns: list[str]) -> set[str]:
    """The checkpoints that patterns name."""
    for pattern in patterns:
        if not glob.glob(pattern, recursive=True):
            raise ValueError(f"no checkpoint is named {pattern!r}; quote the pattern, or name files")
    return {path for pattern in patterns for path in glob.glob(pattern, recursive=True)}


def _one_array(path: Path) -> Any:
    from ntkscope.apps.loading import load_inputs

    found = load_inputs(path)
    if isinstance(found, (tuple, dict)):
        raise ValueError(f"{path} holds {len(found)} arrays, expected one; save the targets alone")
    return found


def _line(look: Look) -> str:
    names = ("trace", "effective_rank", "alignment_start")
    numbers = ", ".join(f"{name.replace('_', ' ')} {look.metrics[name].value_text()}" for name in names)
    return f"step {look.step:,}: {numbers}"


def check_report(logs: list[Path], out: Path | None, figures: Path | None) -> None:
    """An error if what is asked for cannot be written, before anything is read."""
    if out is not None:
        check_writable(out, (".html",))
    if figures is not None:
        make_folder(figures)
    check_distinct({"--out": out}, {str(log): log for log in logs})


def distinct(runs: list[Run]) -> list[Run]:
    """The runs, with the folder before the name where names are the same."""
    names = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=f"{run.folder.name or '.'}/{run.name}")
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def deliver(runs: Sequence[Run], out: Path | None, figures: Path | None) -> None:
    """Writes the page and the figures, and says so; the page ``report.html`` if neither is named."""
    from ntkscope.tracking import plots_of, write_figures, write_report

    if out is None and figures is None:
        out = Path("report.html")
    if out is not None:
        write_report(runs, out)
        print(f"Wrote {out}")
    if figures is not None:
        paths = write_figures(plots_of(runs), figures)
        print(f"Wrote {len(paths)} figures to {figures}")
