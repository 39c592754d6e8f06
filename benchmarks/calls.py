"""``python -m benchmarks.calls``: what the first call costs and a later one, each in a fresh process.

A user pays the first call: the kernel is made, the model is traced, memory is touched for the first
time. Every measurement has a process of its own, in turn, so that none profits from another's heap;
what torch, SciPy and this library load once for a process is timed apart, as the first measurement of a
process less that of other modules of the same kind. Passes are forward and backward passes
of the model in a tight loop of the same process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.timing import machine

__all__ = ["JOBS", "main"]

_LATER = 11


@dataclass(frozen=True)
class Job:
    """One row: a model (and the same one later in training), and what is measured of it."""

    title: str
    cases: Callable[[], Any]
    measure: Callable[..., Any]


def _pair(case: Any) -> Any:
    """A model before and after a small step."""
    import copy

    import torch

    torch.manual_seed(1)
    after = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.add_(0.05 * parameter.std().nan_to_num(0.01) * torch.randn_like(parameter))
    return case, dataclasses.replace(case, model=after)


def _models() -> Any:
    from benchmarks import models

    return models


def _four(kernels: list[Any]) -> Any:
    return kernels[1].measure([kernels[0]], rtol=0.01)


def _trace(kernels: list[Any]) -> Any:
    return kernels[0].trace(rtol=0.01)


def _exact(kernels: list[Any]) -> Any:
    return kernels[0].trace("exact")


JOBS: dict[str, Job] = {
    "mlp-exact": Job("MLP of the paper: exact trace", lambda: [_models().paper_mlp()], _exact),
    "mlp-trace": Job("MLP of the paper: trace at 1%", lambda: [_models().paper_mlp()], _trace),
    "mlp-four": Job("MLP of the paper: all four at 1%", lambda: _pair(_models().paper_mlp()), _four),
    "gru-trace": Job("GRU of the paper: trace at 1%", lambda: [_models().paper_gru()], _trace),
    "gru-four": Job("GRU of the paper: all four at 1%", lambda: _pair(_models().paper_gru()), _four),
    "mnist-four": Job("MNIST MLP, 512 digits: all four at 1%", lambda: _models().mnist_mlps(), _four),
    "resnet-trace": Job("ResNet-8: trace at 1%", lambda: [_models().resnet()], _trace),
    "resnet-four": Job("ResNet-8: all four at 1%", lambda: _pair(_models().resnet()), _four),
    "transformer-trace": Job("6-layer encoder: trace at 1%", lambda: [_models().transformer()], _trace),
}


def _worker(name: str) -> dict[str, Any]:
    """One measurement in this process."""
    start = time.perf_counter()
    import torch

    threads = os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(int(threads) if threads else torch.get_num_threads())
    job = JOBS[name]
    cases = list(job.cases())
    models = _models()
    models.forward_and_backward(cases[0])
    loaded = time.perf_counter()

    def seconds(work: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    # The first of the process loads what torch, SciPy and this library load once.
    once = seconds(lambda: job.measure([case.kernel() for case in cases]))
    # Other modules: nothing is known of them.
    cases = list(job.cases())
    kernels: list[Any] = []
    results: list[Any] = []

    def begin() -> None:
        kernels.extend(case.kernel() for case in cases)
        results.append(job.measure(kernels))

    first = seconds(begin)
    # The same module once more, and the same kernels once more.
    again = seconds(lambda: job.measure([case.kernel() for case in cases]))
    later = [seconds(lambda: job.measure(kernels)) for _ in range(_LATER)]
    # As many passes as kernels: the yardstick of one look at each.
    passes = [seconds(lambda: models.forward_and_backward(cases[0])) for _ in range(3 * _LATER)]
    return {
        "load": loaded - start,
        "once": once,
        "first": first,
        "again": again,
        "later": float(np.median(later)),
        "pass": float(np.median(passes)),
        "cost": str(results[0].cost),
    }


def main(
    jobs: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(JOBS)}; all if none.")] = None,
    rounds: Annotated[int, typer.Option(help="Fresh processes of each, in turn.")] = 10,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("results/calls.json"),
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time first and later calls."""
    if worker:
        sys.stdout.write(json.dumps(_worker(worker)))
        return
    chosen = jobs or list(JOBS)
    if unknown := set(chosen) - set(JOBS):
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(JOBS)}")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name in chosen:
            command = [sys.executable, "-m", "benchmarks.calls", "--worker", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    console = Console()
    console.print(_table(found))
    known = json.loads(out.read_text()) if out.exists() else {"jobs": {}}
    known["jobs"] |= {name: {"title": JOBS[name].title, "rounds": runs} for name, runs in found.items()}
    known["machine"] = machine()
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    partial.replace(out)
    console.print(f"wrote {out}")


def _table(found: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(title="fresh processes, in turn: medians")
    heads = (
        "",
        "a pass, ms",
        "once a process, s",
        "a model's first, passes",
        "second kernel",
        "later call",
        "cost",
    )
    for name in heads:
        table.add_column(name, justify="left" if not name else "right")
    for name, runs in found.items():
        in_passes = [_in_passes(runs, key) for key in ("first", "again", "later")]
        once, one = (float(np.median([run[key] for run in runs])) for key in ("once", "pass"))
        table.add_row(JOBS[name].title, f"{one * 1e3:.3g}", f"{once:.2g}", *in_passes, runs[0]["cost"])
    return table


def _in_passes(runs: list[dict[str, Any]], key: str) -> str:
    low, median, high = np.percentile([run[key] / run["pass"] for run in runs], [25, 50, 75])
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    typer.run(main)
