"""``python -m benchmarks.gallery``: what every model of the gallery costs at its own size, and the pages.

Each model has two processes of its own, one for times and one for memory, so that none profits from
another's heap. Passes are forward and backward passes of the model in the same process; times are
processor times of one thread, which other work on the machine does not change. Parameters and inputs are
random: nothing is downloaded. ``python -m benchmarks.gallery --pages`` writes ``docs/gallery/`` anew.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn

from benchmarks.gallery_models import GALLERY, Model
from benchmarks.gallery_page import write_pages
from benchmarks.timing import machine
from ntkscope import NTK
from ntkscope.engines.base import Refusal
from ntkscope.engines.torch.hooks.samples import HookedSamples

__all__ = ["call", "disturbed", "main", "structure_of"]

PATH = Path("results/gallery.json")
_LATER = 1
_RTOL, _RTOL_ALL = 0.01, 0.03
# A stop for what would take too long on a machine with few cores.
_SECONDS = 60.0
# Seconds of a pass.
_SLOW = 0.25


def call(model: nn.Module, inputs: Any, options: dict[str, Any]) -> torch.Tensor:
    """The state, with a graph."""
    if isinstance(inputs, dict):
        state = model(**inputs)
    else:
        state = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return options["outputs"](state) if "outputs" in options else state


def disturbed(model: nn.Module, seed: int = 1) -> nn.Module:
    """The same module a step later, in place: every parameter moved by a twentieth of its spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs().sum()
            parameter.add_(0.05 * (spread + 1e-3) * noise.to(parameter.dtype))
    return model


def structure_of(ntk: NTK) -> dict[str, Any]:
    """What was found of the samples, or why nothing was."""
    samples = ntk.engine.samples()
    if isinstance(samples, Refusal):
        return {"refusal": samples.reason}
    if isinstance(samples, HookedSamples):
        layers = len(samples.hooked.layers)
        return {
            "batch": samples.batch,
            "outputs": samples.outputs,
            "uses": layers,
            "derived": 0,
            "general": {},
        }
    graph = samples.jacobian.graph  # type: ignore[attr-defined]
    return {
        "batch": samples.batch,
        "outputs": samples.outputs,
        "uses": len(graph.uses),
        "derived": 0 if graph.derivation is None else len(graph.derivation.weights),
        "general": dict(graph.why_general),
    }


def _one_pass(model: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(call(model, inputs, options).sum(), parameters, allow_unused=True)


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def _time(entry: Model) -> dict[str, Any]:
    """Costs in passes: the trace at 1%, first and later, then the other metrics and all four at 3%."""
    model, inputs, options = entry.build()
    run = lambda: _one_pass(model, inputs, options)  # noqa: E731
    run()
    before = [_seconds(run)[0] for _ in range(3)]
    limits: dict[str, Any] = {"seconds": _SECONDS, "progress": False}

    def first() -> tuple[NTK, Any]:
        made = NTK(model, inputs, **options)
        return made, made.trace(rtol=_RTOL, **limits)

    seconds, (ntk, trace) = _seconds(first)
    found: dict[str, Any] = {"trace, first call": [seconds, trace.converged is not False]}

    def later(name: str, work: Callable[[int], Any]) -> None:
        runs = [_seconds(lambda seed=seed: work(seed)) for seed in range(1, 1 + _LATER)]
        converged = all(result.converged is not False for _, result in runs)
        found[name] = [float(np.median([spent for spent, _ in runs])), converged]

    later("trace", lambda seed: ntk.trace(rtol=_RTOL, seed=seed, **limits))
    other = NTK(disturbed(model), inputs, **options)
    limits["rtol"] = _RTOL_ALL
    if before[0] < _SLOW:
        # Each alone; of what takes long, all at once is enough.
        later("norm", lambda seed: ntk.frobenius_norm(seed=seed, **limits))
        later("effective rank", lambda seed: ntk.effective_rank(seed=seed, **limits))
        later("alignment", lambda seed: ntk.alignment(other, seed=seed, **limits))
    later("all four", lambda seed: ntk.measure([other], seed=seed, **limits)["alignment"][0])
    one = float(np.median([*before, *(_seconds(run)[0] for _ in range(3))]))
    return {
        "n": ntk.n,
        "p": ntk.n_params,
        "shape": list(ntk.output_shape),
        "structure": structure_of(ntk),
        "method": trace.method,
        "cost": str(trace.cost).split(" in ")[0],
        "pass": one,
        "passes": {name: [spent / one, converged] for name, (spent, converged) in found.items()},
    }


def _status(key: str) -> int:
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _peak(base: int, work: Callable[[], Any]) -> int:
    """The most memory that a piece of work takes, above a base."""
    gc.collect()
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")
    work()
    return _status("VmHWM") - base


def _memory(entry: Model) -> dict[str, Any]:
    """Peaks of a pass and of the trace at 1%, both with the model, in bytes."""
    small, inputs, options = entry.build(small=True)
    # What torch and the packages load once.
    _one_pass(small, inputs, options)
    NTK(small, inputs, **options).trace(progress=False)
    del small, inputs
    gc.collect()
    base = _status("VmRSS")
    model, inputs, options = entry.build()
    one = _peak(base, lambda: _one_pass(model, inputs, options))
    trace = _peak(base, lambda: NTK(model, inputs, **options).trace(progress=False, seconds=_SECONDS))
    return {"bytes of a pass": one, "bytes of the trace": trace}


def _worker(key: str, kind: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {"time": _time, "memory": _memory}[kind](GALLERY[key])
    print(json.dumps(found))


def _measured(key: str) -> dict[str, Any]:
    """By fresh processes."""
    found: dict[str, Any] = {}
    for kind in ("time", "memory"):
        # Freed arrays go back to the system, so that peaks are those of arrays.
        returned = {"MALLOC_MMAP_THRESHOLD_": "65536"} if kind == "memory" else {}
        command = [sys.executable, "-m", "benchmarks.gallery", key, "--worker", kind]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | returned
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found |= json.loads(output.stdout.splitlines()[-1])
    return found


def main(
    keys: Annotated[list[str] | None, typer.Argument(help="Models; all that can be made if none.")] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = PATH,
    pages: Annotated[bool, typer.Option(help="Only write the pages from the JSON.")] = False,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure models of the gallery at their own size, and write the pages."""
    if worker:
        _worker((keys or [""])[0], worker)
        return
    console = Console()
    known: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"models": {}}
    unknown = set(keys or []) - set(GALLERY)
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(GALLERY)}")
    for key in [] if pages else keys or GALLERY:
        if missing := GALLERY[key].missing():
            console.print(f"{key}: left out, {missing}")
            continue
        known["models"][key] = _measured(key)
        known["machine"] = machine()
        costs = known["models"][key]["passes"]
        write_pages(known)
        console.print(key, {name: round(passes, 1) for name, (passes, _) in costs.items()})
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    write_pages(known)


if __name__ == "__main__":
    typer.run(main)
