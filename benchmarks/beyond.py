"""``python -m benchmarks.beyond``: what is measured beyond four numbers, counted in passes and timed in turn.

A pass is a forward and backward pass of the model. Ratios are medians over rounds in which each
contender runs once.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from scipy.sparse.linalg import eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from benchmarks import models
from benchmarks.timing import machine
from ntkscope import NTK, penalties
from ntkscope.apps.digits import accuracy, load_digits, make_network

PATH = Path("results/beyond.json")
_ROUNDS = 10


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _ratio(work: Callable[[], Any], yardstick: Callable[[], Any], rounds: int = _ROUNDS) -> float:
    """Median of the first's seconds over the second's, in turn; both have run before."""
    work(), yardstick()
    return float(np.median([_seconds(work)[0] / _seconds(yardstick)[0] for _ in range(rounds)]))


def _kernel(case: models.Case) -> NTK:
    return NTK(case.model, case.inputs, outputs=case.outputs, batch_dim=case.batch_dim)


def partial_traces() -> dict[str, Any]:
    """The paper's GRU over batch, time and unit at 2%, and a contraction that keeps cross terms."""
    case = models.paper_gru()
    found: dict[str, Any] = {}
    total = 0.0
    for keep in ("time", "batch", "unit"):
        ntk = _kernel(case)
        seconds, matrix = _seconds(
            lambda ntk=ntk, keep=keep: ntk.partial_trace(keep, names=("time", "batch", "unit"), rtol=0.02)
        )
        total += seconds
        values = np.linalg.eigvalsh(np.asarray(matrix.values, dtype=float))
        error = 0.0 if matrix.stderr is None else float(np.linalg.norm(np.asarray(matrix.stderr)))
        rank = matrix.effective_rank
        found[keep] = {
            "seconds": seconds,
            "smallest eigenvalue": float(values[0]),
            "largest": float(values[-1]),
            "norm of the errors": error,
            "effective rank": [rank.value, rank.stderr],
        }
    found["seconds"] = total
    # Probes w ⊗ e_u that share one w over time and batch: right in the mean over random w alone.
    ntk = _kernel(case)
    exact = np.asarray(ntk.partial_trace("unit", method="exact", names=("time", "batch", "unit")).values)
    times, batch, units = ntk.output_shape
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (times, batch))
    for name, weights in (("ones", np.ones((times, batch))), ("one draw of signs", signs)):
        probes = np.zeros((times, batch, units, units), dtype=np.float32)
        probes[:, :, range(units), range(units)] = weights[:, :, None]
        pulled = ntk.vjp(probes.reshape(-1, units))
        off = np.linalg.norm(pulled.T @ pulled - exact) / np.linalg.norm(exact)
        found[f"contraction with {name}, off by"] = float(off)
    return found


def _by_layer(ntk: NTK) -> dict[str, float]:
    by_layer = functools.partial(ntk.split, "trace", by="layer")
    parts, whole = by_layer(method="exact"), ntk.trace("exact")
    return {
        "sum over whole - 1": sum(float(part) for part in parts.values()) / whole.value - 1,
        "by layer over trace": _ratio(lambda: by_layer(rtol=0.01), lambda: ntk.trace(rtol=0.01)),
        "by layer over trace, exact": _ratio(lambda: by_layer(method="exact"), lambda: ntk.trace("exact")),
    }


def layers() -> dict[str, Any]:
    """A trace by layer over a trace, and passes of a ResNet's alignments of layers."""
    mlp = _kernel(models.paper_mlp())
    resnet = _kernel(models.resnet())
    found: dict[str, Any] = {}
    for name, ntk in (("MLP of the paper", mlp), ("ResNet-8", resnet)):
        found[name] = _by_layer(ntk)
    torch.manual_seed(0)
    deep = _resnet18()
    inputs = torch.randn(64, 3, 64, 64)
    ntk = NTK(deep, inputs)
    seconds, aligned = _seconds(lambda: ntk.part_alignments(by="layer", rtol=0.05))

    def step() -> None:
        torch.autograd.grad(deep(inputs).sum(), list(deep.parameters()))

    step()
    one = float(np.median([_seconds(step)[0] for _ in range(5)]))
    found["ResNet-18, 64 images of 3×64×64"] = {
        "layers": len(aligned.rows),
        "VJPs": aligned.cost.vjps,
        "passes, later call": seconds / one,
    }
    return found


def _resnet18() -> nn.Module:
    """The usual ResNet-18 with 100 classes."""
    blocks: list[nn.Module] = []
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for number in range(2):
            stride = 2 if stage and not number else 1
            blocks.append(models._Block(inputs, width, stride))
            inputs = width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100)]
    return nn.Sequential(*stem, *blocks, *head).eval()


def spectrum() -> dict[str, Any]:
    """Density and largest eigenvalues of the trained digits' kernel."""
    case = models.mnist_mlps()[1]
    ntk = _kernel(case)
    dense = np.linalg.eigvalsh(np.asarray(ntk.to_dense(), dtype=np.float64))[::-1]
    seconds, found = _seconds(lambda: ntk.spectrum("lanczos", products=400))
    weights = np.concatenate([np.ones(len(found.known)), np.ones(found.zeros)])
    nodes = np.concatenate([found.known, np.zeros(found.zeros), found.quadrature.nodes.ravel()])
    rest = found.quadrature.weights.ravel() * (found.n - len(weights)) / found.probes
    distance = wasserstein_distance(nodes, dense, np.concatenate([weights, rest]))
    top = ntk.eigenpairs(10)
    operator = ntk.to_scipy()
    return {
        "n": ntk.n,
        "products": found.cost.products,
        "seconds": seconds,
        "earth mover's distance over range": float(distance / (dense[0] - dense[-1])),
        "top 10, relative error": float(np.max(np.abs(np.asarray(top.values) / dense[:10] - 1))),
        "top 10 over SciPy's eigsh on the same operator": _ratio(
            lambda: ntk.eigenpairs(10), lambda: eigsh(operator, 10, tol=1e-4), 5
        ),
    }


def _trained(penalty: float) -> tuple[nn.Module, float]:
    """Four epochs on digits, and the seconds of a step."""
    digits = load_digits()
    network = make_network(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(0)
    seconds, step = [], 0
    for _ in range(4):
        shuffled = torch.randperm(len(digits.train_images), generator=order)
        for batch in shuffled.split(128):
            start = time.perf_counter()
            state: Tensor = network(digits.train_images[batch])
            loss = nn.functional.cross_entropy(state, digits.train_labels[batch])
            if penalty:
                loss = loss + penalty * penalties.trace(
                    network, digits.train_images[batch], seed=step, state=state
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
            step += 1
    return network, float(np.median(seconds))


def penalised() -> dict[str, Any]:
    """Training with the kernel's trace as a penalty beside training without."""
    digits = load_digits()
    found: dict[str, Any] = {}
    times = {}
    for name, penalty in (("plain", 0.0), ("penalised", 1e-6)):
        network, times[name] = _trained(penalty)
        found[name] = {
            "accuracy": accuracy(network, digits),
            "trace": NTK(network, digits.test_images).trace("exact").value,
        }
    found["step over plain step"] = times["penalised"] / times["plain"]
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function for function in (partial_traces, layers, spectrum, penalised)
}


def main(
    only: Annotated[str | None, typer.Option(help=f"One of {', '.join(PARTS)}.")] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = PATH,
) -> None:
    """Measure each part."""
    console = Console()
    known: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for name in [only] if only else list(PARTS):
        known[name] = PARTS[name]()
        console.print(name, known[name])
    known["machine"] = machine()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    partial.replace(out)


if __name__ == "__main__":
    typer.run(main)
