"""What watching costs, and how well the curves agree with exact ones.

    python -m benchmarks.tracker --rounds 5 --seeds 20

The network of the demo (784-256-256-10) trains for 2,000 steps with Adam on batches of 128 digits, with a
tracker of ``overhead=0.05`` and without, in turn. Then 20 moments of that training are looked at with
other probes for every seed, as a tracker would, and compared with exact numbers.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from benchmarks.timing import machine
from ntkscope import NTK, Tracker
from ntkscope.apps.digits import Digits, load_digits, make_network
from ntkscope.tracking.series import watch_series

SAMPLES, MOMENTS = 128, 20


def train(digits: Digits, model: nn.Module, steps: int, after: Callable[[Any], object]) -> None:
    """The same training every time; ``after`` is called with the loss of every step."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = torch.randint(len(digits.train_images), (128,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
        loss.backward()
        optimizer.step()
        after(loss)


def cost(digits: Digits, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of both trainings in turn, by the wall's clock and by the processor's."""
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        times: dict[str, float] = {}
        for name in ("plain", "watched"):
            model = make_network()
            wall, work = time.perf_counter(), time.process_time()
            after: Callable[[Any], object] = lambda loss: None  # noqa: E731
            if name == "watched":
                tracker = Tracker(
                    model, digits.test_images[:SAMPLES], "auto", targets=digits.test_labels[:SAMPLES]
                )
                times["set-up"] = time.perf_counter() - wall
                after = lambda loss, tracker=tracker: tracker.step(loss=loss)  # noqa: E731
            train(digits, model, steps, after)
            times[f"{name}, wall"] = time.perf_counter() - wall
            times[f"{name}, processor"] = time.process_time() - work
        times |= {"looks": len(tracker.looks), "overhead": tracker.overhead}
        found.append(times)
        print({key: round(value, 3) for key, value in times.items()}, flush=True)

    def slower(clock: str, without: str = "") -> list[float]:
        return [
            (one[f"watched, {clock}"] - one.get(without, 0.0)) / one[f"plain, {clock}"] - 1 for one in found
        ]

    return {
        "rounds": found,
        "looks": min(int(one["looks"]) for one in found),
        "slower, wall": float(np.median(slower("wall"))),
        "slower, processor": float(np.median(slower("processor"))),
        "slower without the set-up, wall": float(np.median(slower("wall", "set-up"))),
    }


def moments(digits: Digits, steps: int) -> tuple[list[int], list[nn.Module]]:
    """The model at some moments of the training, and after how many steps."""
    model = make_network()
    wanted = np.linspace(0, steps, MOMENTS).round().astype(int).tolist()
    kept, count = {0: copy.deepcopy(model)}, itertools.count(1)

    def keep(loss: Any) -> None:
        if (step := next(count)) in wanted:
            kept[step] = copy.deepcopy(model)

    train(digits, model, steps, keep)
    return list(kept), list(kept.values())


def truths(kernels: list[NTK], labels: torch.Tensor) -> dict[str, list[float]]:
    """The exact numbers of every moment, and nan where there is none."""
    found: dict[str, list[float]] = {}
    for index, kernel in enumerate(kernels):
        last = kernels[max(index - 1, 0)]
        others = kernel.measure([kernels[0], last], method="exact")
        row = {
            "trace": others.trace,
            "frobenius_norm": others.frobenius_norm,
            "effective_rank": others.effective_rank,
            "target_alignment": kernel.target_alignment(labels, method="exact"),
            "alignment_start": others.alignment[0] if index else math.nan,
            "velocity": 1 - others.alignment[1] if index else math.nan,
        }
        for name, value in row.items():
            found.setdefault(name, []).append(float(value))
    return found


def agreement(digits: Digits, steps: int, seeds: int) -> dict[str, Any]:
    """How often the exact number is within two standard errors, and within the 95% interval."""
    images, labels = digits.test_images[:SAMPLES], digits.test_labels[:SAMPLES]
    when, models = moments(digits, steps)
    first = NTK(models[0], images)
    kernels = [first.at(model) for model in models]
    exact = truths(kernels, labels)

    def pairs() -> Iterator[tuple[nn.Module, NTK]]:
        yield from zip(models, kernels, strict=True)

    hits: dict[str, list[list[tuple[bool, bool]]]] = {name: [] for name in exact}
    for seed in range(seeds):
        run = watch_series(pairs(), when, targets=labels, seed=seed)
        for name, values in exact.items():
            row = []
            for look, value in zip(run.looks, values, strict=True):
                if name in look.metrics and math.isfinite(value):
                    estimate = look.metrics[name]
                    low, high = estimate.interval()
                    row.append(
                        (abs(estimate.value - value) <= 2 * (estimate.stderr or 0), low <= value <= high)
                    )
            hits[name].append(row)
    found: dict[str, Any] = {}
    for name, rows in hits.items():
        table = np.array(rows, dtype=float)  # seeds, looks, (two errors, interval)
        runs = table[..., 0].mean(axis=1)
        found[name] = {
            "within two": float(table[..., 0].mean()),
            "within the interval": float(table[..., 1].mean()),
            "of single runs": [float(q) for q in np.quantile(runs, [0.1, 0.5, 0.9])],
        }
        print(name, found[name], flush=True)
    return {"moments": when, "seeds": seeds, "metrics": found}


def main(
    rounds: Annotated[int, typer.Option(help="Of both trainings.")] = 5,
    seeds: Annotated[int, typer.Option(help="Of the probes.")] = 20,
    steps: Annotated[int, typer.Option(help="Of training.")] = 2000,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("results/tracker.json"),
) -> None:
    """Time a tracker, and compare its curves with exact ones."""
    torch.set_num_threads(1)
    digits = load_digits()
    content = {
        "agreement": agreement(digits, steps, seeds),
        "cost": cost(digits, steps, rounds),
        "machine": machine(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print({name: value for name, value in content["cost"].items() if name != "rounds"})


if __name__ == "__main__":
    typer.run(main)
