"""How long each way to the same number takes, and the ratios."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import ntkscope
from benchmarks import models, peers
from benchmarks.timing import Contender, Timed, in_turn

_METHODS = ("hutch++", "rhutch", "fhutch")


@dataclass
class Section:
    """One table: what was done, the times, and the claims that they bear out or not."""

    title: str
    times: list[Timed]
    baseline: str
    facts: dict[str, Any] = field(default_factory=dict)

    def timed(self, name: str) -> Timed:
        return next(timed for timed in self.times if timed.name == name)


def _yardstick(case: models.Case) -> Contender:
    return Contender("forward and backward", lambda: models.forward_and_backward(case))


def ntk_products(kernel: ntkscope.NTK, part: int) -> Contender:
    """The baseline of arXiv 2511.10796: n NTK products with the identity, run on a part and scaled."""
    block = torch.zeros(kernel.n, part, dtype=kernel.dtype)
    block[torch.arange(part), torch.arange(part)] = 1
    name = f"n NTK products ({part} run, scaled)" if part < kernel.n else "n NTK products"
    return Contender(name, lambda: kernel @ block, scale=kernel.n / part)


def best_chunk(case: models.Case, part: int = 256) -> int:
    """The chunk size at which NTK products run quickest."""
    sizes = (16, 32, 64, 128, 256)
    contenders = [
        Contender(str(size), ntk_products(case.kernel(chunk_size=size), part).work) for size in sizes
    ]
    return int(min(in_turn(contenders, 3), key=lambda timed: timed.median).name)


def smallest_budget(
    estimate: Callable[[int, int], float], truth: float, tolerance: float, budgets: list[int], seeds: int = 15
) -> int | None:
    """The smallest budget at which the median error over the seeds is within the tolerance."""
    for budget in budgets:
        errors = [abs(estimate(budget, seed) / truth - 1) for seed in range(seeds)]
        if float(np.median(errors)) <= tolerance:
            return budget
    return None


def _budgets(first: int, last: int) -> list[int]:
    return sorted({round(first * 1.3**step) for step in range(60) if first * 1.3**step <= last})


def _at_tolerance(
    kernel: ntkscope.NTK, truth: float, tolerance: float, largest: int, seeds: int = 15
) -> Iterator[Contender]:
    """Every method at the smallest budget that reaches the tolerance in the median."""
    counter = itertools.count(1000)
    for method in (*_METHODS, "per-sample"):
        first = 4 if method == "hutch++" else 1

        def run(budget: int, seed: int, method: str = method) -> float:
            return kernel.trace(method, products=budget, seed=seed).value

        budget = smallest_budget(run, truth, tolerance, _budgets(first, largest), seeds)
        if budget is None:
            continue
        yield Contender(
            f"{method}, {budget} probes",
            lambda run=run, budget=budget: run(budget, next(counter)),
            note=f"median error within {tolerance:g}",
        )


def mlp(repeats: int) -> list[Section]:
    case = models.paper_mlp()
    kernel = case.kernel()
    exact = kernel.trace("exact")
    chunk = best_chunk(case)
    contenders = [
        _yardstick(case),
        Contender("exact (ours)", lambda: kernel.trace("exact")),
        Contender("exact (ours), new kernel", lambda: case.kernel().trace("exact")),
        ntk_products(case.kernel(chunk_size=chunk), 640),
        Contender(
            "n VJPs",
            lambda: kernel.engine.jacobian.vjp_squared_norms(torch.eye(640, kernel.n)),
            kernel.n / 640,
        ),
    ]
    budget = smallest_budget(
        lambda m, seed: kernel.trace("hutch++", products=m, seed=seed).value,
        exact.value, 1e-6, _budgets(60, 1200), 7,
    )  # fmt: skip
    if budget is not None:
        contenders.append(
            Contender(f"hutch++ to 1e-6, {budget} products", lambda: kernel.trace("hutch++", products=budget))
        )
    for name, work in (("nngeometry", peers.nngeometry_trace(case)),
                       ("curvlinops hutch++, 60", peers.curvlinops_trace(case, 60, "hutch++")),
                       ("curvlinops xtrace, 60", peers.curvlinops_trace(case, 60, "xtrace"))):  # fmt: skip
        if work is not None:
            contenders.append(Contender(name, work))
    facts = {"trace": exact.value, "best chunk of NTK products": chunk}
    sections = [Section(f"{case.name}: exact trace", in_turn(contenders, repeats), "exact (ours)", facts)]
    loose = list(_at_tolerance(kernel, exact.value, 0.01, 800))
    rows = in_turn(
        [
            _yardstick(case),
            *loose,
            Contender("trace() with no argument", lambda: kernel.trace()),
        ],
        repeats,
    )
    sections.append(Section(f"{case.name}: trace to 1%", rows, loose[-1].name))
    return sections


def mnist(repeats: int) -> list[Section]:
    before, after = models.mnist_mlps()
    kernels = before.kernel(), after.kernel()
    contenders = [
        _yardstick(after),
        Contender("exact trace (ours)", lambda: kernels[1].trace("exact")),
    ]
    peer = peers.nngeometry_trace(after)
    if peer is not None:
        contenders.append(Contender("nngeometry, exact trace", peer))
    sections = [Section("MNIST MLP: exact trace", in_turn(contenders, repeats), "exact trace (ours)")]
    contenders = [
        Contender(
            "all exact metrics, both kernels", lambda: kernels[0].measure([kernels[1]], method="exact")
        ),
        ntk_products(after.kernel(chunk_size=best_chunk(after)), 256),
        _yardstick(after),
    ]
    rows = in_turn(contenders, repeats)
    sections.append(Section("MNIST MLP: trace, norm, effective rank, alignment", rows, contenders[0].name))
    return sections


def gru(repeats: int) -> list[Section]:
    case = models.paper_gru()
    kernel = case.kernel()
    exact = kernel.trace("exact")
    contenders = [
        _yardstick(case),
        Contender("exact (ours)", lambda: kernel.trace("exact")),
        ntk_products(case.kernel(chunk_size=best_chunk(case)), 256),
    ]
    facts = {"trace": exact.value}
    sections = [Section(f"{case.name}: exact trace", in_turn(contenders, repeats), "exact (ours)", facts)]
    loose = list(_at_tolerance(kernel, exact.value, 0.005, 1500, 25))
    rows = in_turn([_yardstick(case), *loose], repeats)
    sections.append(Section(f"{case.name}: trace to 0.5%", rows, loose[-1].name))
    return sections


def larger(repeats: int) -> list[Section]:
    sections = []
    case = models.resnet()
    kernel = case.kernel()
    rows = [
        _yardstick(case),
        Contender("exact trace (ours)", lambda: kernel.trace("exact")),
    ]
    title = f"{case.name}: exact trace"
    sections.append(Section(title, in_turn(rows, repeats), "exact trace (ours)"))
    case = models.transformer()
    kernel = case.kernel()
    fine = kernel.trace("per-sample", products=400, seed=99)
    budget = smallest_budget(
        lambda m, seed: kernel.trace("per-sample", products=m, seed=seed).value,
        fine.value, 0.01, list(range(1, 40)), 15,
    )  # fmt: skip
    rows = [
        _yardstick(case),
        Contender(
            f"per-sample, {budget} probes",
            lambda: kernel.trace("per-sample", products=budget),
            note="median error within 0.01",
        ),
        Contender("trace(rtol=0.01)", lambda: kernel.trace("per-sample", rtol=0.01)),
    ]
    facts = {"trace by 400 probes": fine.value, "its standard error": fine.stderr}
    sections.append(Section(f"{case.name}: trace to 1%", in_turn(rows, repeats), rows[1].name, facts))
    return sections


SUITES: dict[str, Callable[[int], list[Section]]] = {"mlp": mlp, "mnist": mnist, "gru": gru, "larger": larger}
