"""``python -m benchmarks.scale``: streams, memory budgets and processes, each in processes of its own.

Memory is the peak of the process over what it holds when all is imported and made; passes are passes
over the data, forward and backward, of one kernel. Two processes are compared with one that has half
of their samples, all with one thread, in turn.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.timing import machine
from ntkscope import NTK
from ntkscope.apps.digits import Digits, load_digits, make_network, train

PATH = Path("results/scale.json")
_SAMPLES, _BATCH = 200_000, 1000
_ROUNDS = 5
_EACH = 512
_PRODUCTS = 8


def _peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _images(digits: Digits) -> Tensor:
    return torch.cat([digits.train_images, digits.test_images])


def _networks(digits: Digits) -> tuple[nn.Module, nn.Module]:
    """The network for digits before and after an epoch of training."""
    first, second = make_network(0), make_network(0)
    train(second, digits, epochs=1)
    return first, second


def _visits(ntk: NTK) -> list[int]:
    """A list that grows by one with every batch that is computed."""
    seen: list[int] = []
    stream: Any = ntk.engine.stream  # type: ignore[attr-defined]
    visit = stream.visit

    def counted(number: int, reader: Any) -> Any:
        seen.append(number)
        return visit(number, reader)

    stream.visit = counted
    return seen


def _metrics(found: Any) -> dict[str, Any]:
    return {name: [estimate.value, estimate.stderr] for name, estimate in found.rows()}


def digits() -> dict[str, Any]:
    """5,000 digits in batches of 250: exact traces and all metrics at 1%, beside one batch of them all."""
    data = load_digits(0)
    x = _images(data)
    first, second = _networks(data)
    loader = DataLoader(TensorDataset(x), batch_size=250)
    before, start = _peak(), time.perf_counter()
    stream = NTK(first, loader)
    later = stream.at(second)
    trace = stream.trace("exact").value
    found = stream.measure([later], rtol=0.01)
    seconds, memory = time.perf_counter() - start, _peak() - before
    whole = NTK(first, x).trace("exact").value
    return {
        "n": stream.n,
        "seconds": seconds,
        "MB": memory,
        "off from one batch": abs(trace / whole - 1),
        "metrics": _metrics(found),
    }


class Shifted(Dataset[tuple[Tensor]]):
    """Digits that are moved by up to three pixels, the same way in every pass."""

    def __init__(self, images: Tensor, count: int) -> None:
        self._images, self._count = images.reshape(-1, 28, 28), count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor]:
        generator = np.random.default_rng(index)
        down, right = (int(shift) for shift in generator.integers(-3, 4, 2))
        image = self._images[int(generator.integers(len(self._images)))]
        return (torch.roll(image, (down, right), (0, 1)).reshape(-1),)


def shifted() -> dict[str, Any]:
    """200,000 digits that are made on the way: all metrics of two networks at 1%."""
    data = load_digits(0)
    first, second = _networks(data)
    loader = DataLoader(Shifted(_images(data), _SAMPLES), batch_size=_BATCH)
    before, start = _peak(), time.perf_counter()
    stream = NTK(first, loader)
    later = stream.at(second)
    seen = _visits(stream), _visits(later)
    made = time.perf_counter() - start
    found = stream.measure([later], rtol=0.01)
    batches = -(-_SAMPLES // _BATCH)
    return {
        "n": stream.n,
        "seconds": time.perf_counter() - start,
        "of which made": made,
        "MB": _peak() - before,
        "visits": [len(one) / batches for one in seen],
        "VJPs": found.cost.vjps,
        "metrics": _metrics(found),
    }


def budget() -> dict[str, Any]:
    """A trace whose probes together would take 20 GB, in 2 GiB."""
    torch.manual_seed(0)
    width = 4096
    model = nn.Sequential(
        nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 16)
    )
    x = torch.randn(4096, 64)
    before, start = _peak(), time.perf_counter()
    ntk = NTK(model, x, memory="2GiB")
    found = ntk.trace("per-sample", products=64)
    memory, seconds = _peak() - before, time.perf_counter() - start
    exact = NTK(model, x).trace("exact").value
    # Activations and their gradients of every sample and probe.
    needed = 4 * len(x) * 64 * (3 * 2 * width)
    return {
        "GB without chunks": needed / 1e9,
        "MB": memory,
        "seconds": seconds,
        "off": found.value / exact - 1,
        "stderr": (found.stderr or 0.0) / exact,
    }


def _share() -> None:
    """One of the processes: seconds of each number, printed by the first."""
    import torch.distributed as dist

    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo")
    data = load_digits(0)
    first, second = _networks(data)
    x = _images(data)[rank * _EACH : (rank + 1) * _EACH]
    works: dict[str, Callable[[NTK, NTK], Any]] = {
        "trace at 1%": lambda a, b: a.trace(rtol=0.01).value,
        "exact trace": lambda a, b: a.trace("exact").value,
        f"all four, {_PRODUCTS // 2} probes": lambda a, b: (
            a.measure([b], "per-sample", products=_PRODUCTS).effective_rank.value
        ),
        "all four, exact": lambda a, b: a.measure([b], "exact").effective_rank.value,
    }
    found = {}
    for name, work in works.items():
        times = []
        for _ in range(_ROUNDS):
            kernel = NTK(first, x, group="world" if world > 1 else None)
            later = kernel.at(second)
            if world > 1:
                dist.barrier()
            start = time.perf_counter()
            value = work(kernel, later)
            times.append(time.perf_counter() - start)
        found[name] = {"seconds": float(np.median(times)), "value": value}
    if rank == 0:
        print(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def _ratios(rounds: dict[int, list[Any]], name: str) -> list[float]:
    """Samples a second of two processes over one's, round by round."""
    pairs = zip(rounds[1], rounds[2], strict=True)
    return [2 * one[name]["seconds"] / two[name]["seconds"] for one, two in pairs]


def processes() -> dict[str, Any]:
    """Samples a second of two processes over one's, each with 512 samples and one thread."""
    own = [sys.executable, "-m", "benchmarks.scale", "--only", "share"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runs = {1: own, 2: [sys.executable, *torchrun, *own[1:]]}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rounds: dict[int, list[Any]] = {1: [], 2: []}
    for _ in range(3):
        for world, words in runs.items():
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
            rounds[world].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {
            "samples a second": [
                float(np.median([world * _EACH / one[name]["seconds"] for one in rounds[world]]))
                for world in (1, 2)
            ],
            "times": float(np.median(_ratios(rounds, name))),
        }
        for name in rounds[1][0]
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function for function in (digits, shifted, budget, processes)
}


def main(
    only: Annotated[str | None, typer.Option(help=f"One of {', '.join(PARTS)}.")] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = PATH,
) -> None:
    """Measure each part in a process of its own."""
    if only == "share":
        _share()
        return
    if only is not None:
        print(json.dumps(PARTS[only]()))
        return
    console = Console()
    known: dict[str, Any] = {}
    for name in PARTS:
        words = [sys.executable, "-m", "benchmarks.scale", "--only", name]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        known[name] = json.loads(done.stdout.splitlines()[-1])
        console.print(name, known[name])
    known["machine"] = machine()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    partial.replace(out)


if __name__ == "__main__":
    typer.run(main)
