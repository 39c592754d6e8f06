"""The demo: the kernel of a network of digits before and after training, exactly and by products."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ntkscope import NTK, plots
from ntkscope.apps.digits import Digits, accuracy, load_digits, make_network, steps, train
from ntkscope.apps.tables import comparison_grid, print_grid
from ntkscope.files import check_writable, make_folder, write_text
from ntkscope.report import Report, document, measure_kernel, to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["DemoResult", "demo_figure", "run_demo"]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        exact: The numbers by the cheapest exact way.
        estimated: The same numbers by a fixed budget of products, with error bars.
        maps: Cosines between the test images' gradients before and after, sorted by digit.
        labels: The digits, sorted.
        accuracy: Of the test images, before and after.
        final_loss: Mean training loss of the last epoch.
    """

    exact: Report
    estimated: Report
    maps: tuple[NDArray[np.float64], NDArray[np.float64]]
    labels: NDArray[np.int64]
    accuracy: tuple[float, float]
    final_loss: float


def run_demo(
    out: Path, *, epochs: int, seed: int, products: int, device: str = "cpu", console: Console
) -> DemoResult:
    """Trains, measures, prints, and writes ``demo.json`` and ``demo.png``.

    Args:
        out: Folder; made if it is not there.
        epochs: Of training.
        seed: Of the split, the initialisation, the order of training and the probes.
        products: NTK products of the estimates.
        device: Where to run.
        console: Where to print.
    """
    start = time.perf_counter()
    make_folder(out)
    for name in ("demo.json", "demo.png"):
        check_writable(out / name)
    result = _compute(epochs, seed, products, device, console)
    _show(result, products, console)
    arguments = {"epochs": epochs, "seed": seed, "products": products, "device": device}
    _write(result, arguments, out)
    console.print(
        f"Wrote {out / 'demo.png'} and {out / 'demo.json'} ({time.perf_counter() - start:.0f} s in all).",
        highlight=False,
        soft_wrap=True,
    )
    return result


def _compute(epochs: int, seed: int, products: int, device: str, console: Console) -> DemoResult:
    with console.status("reading the digits"):
        digits = load_digits(seed)
    network = make_network(seed).to(device)
    images = digits.test_images.to(device)
    before, accuracy_before = NTK(network, images), accuracy(network, digits)
    loss = _train(network, digits, epochs, seed, console)
    after, accuracy_after = before.at(network), accuracy(network, digits)
    with console.status("measuring both kernels"):
        exact = _both(before, after, method="exact", seed=seed)
        estimated = _both(before, after, seed=seed, products=products)
    order = digits.test_labels.argsort(stable=True)
    with console.status("drawing both kernels"):
        maps = (_cosines(before, order.numpy()), _cosines(after, order.numpy()))
    labels = digits.test_labels[order].numpy()
    return DemoResult(exact, estimated, maps, labels, (accuracy_before, accuracy_after), loss)


def _train(network: Any, digits: Digits, epochs: int, seed: int, console: Console) -> float:
    """Trains with a progress bar; the mean loss of the last epoch."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = steps(digits, epochs)
    losses: list[float] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, loss {task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=total, loss="–")

        def advance(loss: float) -> None:
            losses.append(loss)
            bar.update(task, advance=1, loss=f"{np.mean(losses[-20:]):.3f}")

        train(network, digits, epochs, seed, advance)
    return float(np.mean(losses[-(total // epochs) :]))


def _both(before: NTK, after: NTK, **options: Any) -> Report:
    first, alignments = measure_kernel("before", before, others=[("after", after)], **options)
    second, _ = measure_kernel("after", after, **options)
    return Report((first, second), alignments)


def _cosines(kernel: NTK, order: NDArray[np.int64]) -> NDArray[np.float64]:
    """The kernel between images, summed over the logits, divided by its diagonal."""
    batch, outputs = kernel.output_shape
    dense = kernel.to_dense().reshape(batch, outputs, batch, outputs)
    between = dense.diagonal(dim1=1, dim2=3).sum(-1).double().cpu().numpy()[np.ix_(order, order)]
    scale = np.sqrt(np.diag(between))
    return np.asarray(between / np.outer(scale, scale))


def _show(result: DemoResult, products: int, console: Console) -> None:
    before, after = result.accuracy
    console.print(
        f"Test accuracy of the network 784-256-256-10: {before:.1%} before, {after:.1%} after training.\n"
        "Its kernel K on 512 test images has 5,120 rows. It is measured in two ways.",
        highlight=False,
    )
    for report, words in (
        (result.exact, "Exactly, by the cheapest exact way"),
        (result.estimated, f"By at most {products} products of K with random probes, ± 1 standard error"),
    ):
        console.print(f"\n[bold]{words}[/bold]", highlight=False)
        print_grid(console, comparison_grid(report))


def _write(result: DemoResult, arguments: dict[str, Any], out: Path) -> None:
    content = document("demo", arguments, result.exact)
    content["estimated"] = result.estimated.to_dict()
    content["training"] = {
        "test_accuracy_before": result.accuracy[0],
        "test_accuracy_after": result.accuracy[1],
        "loss_of_last_epoch": result.final_loss,
    }
    write_text(out / "demo.json", to_json(content))
    plots.save_figure(demo_figure(result, arguments["products"]), out / "demo.png")


def demo_figure(result: DemoResult, products: int) -> Figure:
    """The two kernels as pictures, and the four numbers as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 9.4), layout="constrained")
    figure.get_layout_engine().set(hspace=0.04)  # type: ignore[union-attr,call-arg]
    figure.suptitle("What training does to the tangent kernel of a network of digits", fontsize=15)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.35, 1])[:, 0]
    titles = [
        f"{when} training (test accuracy {share:.0%})"
        for when, share in zip(("before", "after"), result.accuracy, strict=True)
    ]
    plots.kernel_maps(top, list(zip(titles, result.maps, strict=True)), result.labels, "digit")
    plots.metric_panels(bottom, result.estimated, reference=result.exact)
    bottom.supxlabel(
        f"bars: estimates from at most {products} products of K, with 95% intervals and 1 s.e. in %; "
        "dotted lines: exact values",
        fontsize=10,
        color="#666666",
    )
    return figure
