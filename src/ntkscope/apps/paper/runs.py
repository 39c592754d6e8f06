"""One run of one method: what it gives, how long it takes, what it spends."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntkscope import NTK, Cost, Measurement
from ntkscope.apps.digits import Digits
from ntkscope.apps.paper.baselines import Product, hutch_plus_plus, one_sided
from ntkscope.apps.paper.experiments import KERNEL_METRICS, PAPER_METHODS, Case, Cell, Experiment
from ntkscope.apps.paper.store import Row

__all__ = ["Problem", "seed_of"]

_NAN = float("nan")

# Methods that work sample by sample: finding the samples' structure is part of construction.
_STRUCTURED = {"per-sample", "exact", "tolerance", "sketch", "nystrom"}

# NTK products that the paper's exact way spends for each of n columns: K; K²; KK′, K², K′²; K and K².
_EXACT_PRODUCTS = {"trace": 1, "frobenius_norm": 2, "alignment": 6, "effective_rank": 3}


# Columns of the identity at a time.
_COLUMNS = 512

# Numbers of gradients at a time on a CPU: what its caches hold.
_GRADIENTS = 1 << 22

#: What a run gave, by metric.
Values = dict[str, float]


def seed_of(seed: int, cell: Cell, repeat: int) -> int:
    """Seed of the probes: another one for every method, setting, metric and repetition."""
    name = zlib.crc32(f"{cell.method} {cell.setting!r} {' '.join(cell.metrics)}".encode())
    return int(np.random.SeedSequence([seed, repeat, name]).generate_state(1, np.uint32)[0])


@dataclass
class Problem:
    """An experiment's models on a device, and the exact values.

    Args:
        experiment: Which.
        digits: MNIST, if it is needed.
        device: Where to run.
        clock: Seconds.
    """

    experiment: Experiment
    digits: Digits | None
    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    cases: tuple[Case, ...] = field(init=False)
    facts: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        made = self.experiment.cases(self.digits)
        self.cases = tuple(case.to(self.device, torch.float32) for case in made)
        self.facts = self._exact_values([case.to(self.device, torch.float64) for case in made])

    def _exact_values(self, cases: Sequence[Case]) -> dict[str, float]:
        """In float64, by structure."""
        kernels = [case.kernel() for case in cases]
        main = kernels[-1]
        facts: dict[str, float] = {"n": main.n, "p": main.n_params}
        if self.experiment.metrics == ("trace",):
            return facts | {"trace": main.trace("exact").value}
        return facts | {"trace": main.trace("exact").value} | _metrics(_measure(kernels, method="exact"))

    def fact_rows(self) -> list[Row]:
        """The exact values as measurements."""
        name = self.experiment.name
        return [
            Row(name, "facts", metric, 0.0, 0, 0, value, 0.0, 0.0, 1.0, 0, 0)
            for metric, value in self.facts.items()
        ]

    def run(self, cell: Cell, repeat: int, seed: int) -> list[Row]:
        """One timed run with new kernels.

        Args:
            cell: The method and its setting.
            repeat: Number of the repetition.
            seed: Base of the probes' seeds.

        Returns:
            A row for each of the cell's metrics.
        """
        probes_seed = seed_of(seed, cell, repeat)
        start = self._now()
        kernels = [case.kernel() for case in self.cases]
        for kernel in kernels:
            if cell.method in _STRUCTURED | {"construction"}:
                kernel.plan()
            elif cell.method in _PARTS or cell.method in PAPER_METHODS:
                # The first product records the forward pass and tries forward mode: not the paper's cost.
                kernel.matvec(_like(kernel).new_zeros(kernel.n))
        values: Values = {}
        scales: dict[str, float] = {}
        before = _cost(kernels)
        if cell.method != "construction":
            work, scales = self._work(cell, kernels, probes_seed)
            start = self._now()
            values = work()
        seconds = self._now() - start
        spent = _cost(kernels) - before
        rows = []
        for metric in cell.metrics:
            value, truth = values.get(metric, _NAN), self.facts[metric]
            error = abs(value - truth) / abs(truth) if truth else abs(value)
            rows.append(
                Row(
                    self.experiment.name, cell.method, metric, float(cell.setting), repeat, probes_seed,
                    value, error, seconds, scales.get(metric, 1.0), spent.vjps, spent.jvps,
                )
            )  # fmt: skip
        return rows

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def _work(
        self, cell: Cell, kernels: list[NTK], seed: int
    ) -> tuple[Callable[[], Values], dict[str, float]]:
        """What is timed, and by how much the whole is larger than it."""
        main, method = kernels[-1], cell.method
        budget = round(cell.setting)
        if method in _PARTS:
            size = main.n_params if method == "p-jvps" else main.n
            part = min(budget, size)
            share = {"ntk-products": _EXACT_PRODUCTS}.get(method, {"trace": 1})
            scales = {metric: share[metric] * size / part for metric in cell.metrics}
            return lambda: _columns(main, _PARTS[method](main), size, part), scales
        if method in ("rhutch", "fhutch"):
            return lambda: {"trace": _one_sided(main, method, budget, seed)}, {}
        if method == "hutch++":
            (metric,) = cell.metrics
            estimate = _HUTCH_PLUS_PLUS[metric]
            return lambda: {metric: estimate(kernels, budget, seed)}, {}
        options: dict[str, Any] = {"seed": seed}
        if method == "tolerance":
            options["rtol"] = cell.setting
        else:
            options["method"] = method
            options["products"] = None if method == "exact" else budget
        if method in ("sketch", "nystrom"):
            # Samples are independent: the trace in the effective rank comes from them.
            options["trace_method"] = "exact"
        if len(kernels) > 1:
            return lambda: _metrics(_measure(kernels, **options)), {}
        return lambda: {"trace": main.trace(**options).value}, {}


def _cost(kernels: Sequence[NTK]) -> Cost:
    return sum((kernel.cost for kernel in kernels), Cost())


def _measure(kernels: Sequence[NTK], **options: Any) -> Measurement:
    return kernels[-1].measure(kernels[:-1], **options)


def _metrics(measurement: Measurement) -> Values:
    (alignment,) = measurement.alignment
    found = {**measurement.estimates, "alignment": alignment}
    return {metric: found[metric].value for metric in KERNEL_METRICS}


# The exact ways that the paper and others take, on the first columns of the identity.


def _columns(kernel: NTK, forms: Product, size: int, part: int) -> Values:
    """Sums the quadratic form of the first so many columns: the trace, if they are all."""
    total = 0.0
    for start in range(0, part, _COLUMNS):
        index = torch.arange(start, min(start + _COLUMNS, part), device=kernel.device)
        rows = torch.zeros(len(index), size, dtype=kernel.dtype, device=kernel.device)
        rows[index - start, index] = 1
        total += float(forms(rows).sum())
    return {"trace": total} if part == size else {}


# Products with rows, by the kernel's own with columns.


def _ntk(kernel: NTK, rows: Tensor) -> Tensor:
    product: Tensor = kernel.matvec(rows.T)
    return product.T


def _ntk_forms(kernel: NTK) -> Product:
    return lambda rows: (rows * _ntk(kernel, rows)).sum(1, dtype=torch.float64)


def _vjp_norms(kernel: NTK) -> Product:
    count = max(1, _GRADIENTS // kernel.n_params) if kernel.device.type == "cpu" else _COLUMNS
    return lambda rows: torch.cat([_squares(kernel.vjp(part.T)) for part in rows.split(count)])


def _jvp_norms(kernel: NTK) -> Product:
    return lambda rows: _squares(kernel.jvp(rows.T))


def _squares(columns: Tensor) -> Tensor:
    """‖c‖² of every column, in float64."""
    return torch.linalg.vecdot(columns.T, columns.T).double()


#: zᵀKz = ‖Jᵀz‖² for rows z, and ‖Ju‖² for rows u.
_PARTS: dict[str, Callable[[NTK], Product]] = {
    "ntk-products": _ntk_forms,
    "n-vjps": _vjp_norms,
    "p-jvps": _jvp_norms,
}


# The paper's estimators.


def _like(kernel: NTK) -> Tensor:
    """An empty tensor of the kernel's kind."""
    return torch.empty(0, dtype=kernel.dtype, device=kernel.device)


def _one_sided(kernel: NTK, method: str, probes: int, seed: int) -> float:
    norms, size = (_vjp_norms, kernel.n) if method == "rhutch" else (_jvp_norms, kernel.n_params)
    return one_sided(norms(kernel), _like(kernel), size, probes, seed)


def _hutch(first: NTK, second: NTK | None, probes: int, seed: int) -> float:
    """Tr K, or tr KK′ by two NTK products a probe."""

    def apply(rows: Tensor) -> Tensor:
        return _ntk(first, rows if second is None else _ntk(second, rows))

    return hutch_plus_plus(apply, _like(first), first.n, probes, seed)


def _norm(kernels: list[NTK], probes: int, seed: int) -> float:
    return float(np.sqrt(abs(_hutch(kernels[-1], kernels[-1], probes, seed))))


def _alignment(kernels: list[NTK], probes: int, seed: int) -> float:
    other, main = kernels
    seeds = _seeds(seed, 3)
    cross = _hutch(main, other, probes, seeds[0])
    norms = _hutch(main, main, probes, seeds[1]) * _hutch(other, other, probes, seeds[2])
    return cross / float(np.sqrt(abs(norms)))


def _effective_rank(kernels: list[NTK], probes: int, seed: int) -> float:
    main, seeds = kernels[-1], _seeds(seed, 2)
    return _hutch(main, None, probes, seeds[0]) ** 2 / _hutch(main, main, probes, seeds[1])


def _seeds(seed: int, count: int) -> list[int]:
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(count, np.uint32)]


_HUTCH_PLUS_PLUS: dict[str, Callable[[list[NTK], int, int], float]] = {
    "trace": lambda kernels, probes, seed: _hutch(kernels[-1], None, probes, seed),
    "frobenius_norm": _norm,
    "alignment": _alignment,
    "effective_rank": _effective_rank,
}
