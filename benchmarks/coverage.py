"""How often 95% intervals cover the truth, and where rtol=0.01 ends.

    python -m benchmarks.coverage --seeds 400 --kernels mlp mnist gru flat
    python -m benchmarks.coverage --rtol --seeds 200

Kernels are dense float64 matrices, of real models or with spectra made to order, so the truth is
known. One run a seed grows through the budgets, and gives every metric that it can. Rows are merged
into the JSON file by kernel, metric, method and budget.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import warnings
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.kernels import STATES, pair
from benchmarks.timing import machine
from ntkscope import estimators
from ntkscope.metrics import METRICS, evaluate, kernels_of, moments_of
from ntkscope.operators.composed import ProductMap, as_map
from ntkscope.operators.probes import random_signs, sphere_probes
from ntkscope.progress import ProgressListener
from ntkscope.runs import nystrom, residuals
from ntkscope.runs.gram import GramRun
from ntkscope.runs.group import MappedRun
from ntkscope.runs.hutchinson import HutchinsonRun, two_sided_draw
from ntkscope.runs.nystrom import NystromRun
from ntkscope.runs.sketch import SketchRun
from ntkscope.settings import Options
from ntkscope.ways import products as methods
from ntkscope.ways.base import Problem
from ntkscope.ways.plan import ways_of
from ntkscope.ways.products import HutchPlusPlus

PAIRS = ("inner_product", "alignment")
SINGLES = ("trace", "frobenius_norm", "effective_rank")
FOLDER = Path("results/estimators")


class Dense:
    """A dense kernel as a map that remembers the products of the probes, which methods share."""

    def __init__(self, dense):
        self.dense = np.ascontiguousarray(dense, dtype=np.float64)
        self._map = as_map(self.dense)
        self.shape, self.epsilon = self._map.shape, self._map.epsilon
        self.identity, self.gram, self.inner = self._map.identity, self._map.gram, self._map.inner
        self.combine, self.concat = self._map.combine, self._map.concat
        self.squares, self.outer = self._map.squares, self._map.outer
        self._products: dict[int, tuple] = {}

    @property
    def ledgers(self):
        return self._map.ledgers

    def factor(self):
        """J, for what needs reverse mode alone."""
        return Reverse(self)

    def probes(self, start, stop, *, seed, stream):
        return _probes(self.shape[0], start, stop, seed, stream)

    def apply(self, block):
        if id(block) not in _SHARED_PROBES:
            return self._map.apply(block)
        if id(block) not in self._products:
            if len(self._products) > 8:
                self._products.pop(next(iter(self._products)))
            self._products[id(block)] = (block, self._map.apply(block))
        return self._products[id(block)][1]

    def __matmul__(self, block):
        return self.apply(block)


_SHARED_PROBES: dict[int, object] = {}


@functools.lru_cache(maxsize=8)
def _probes(size, start, stop, seed, stream):
    block = sphere_probes(size, start, stop, seed=seed, stream=stream)
    if stream == 0:
        _SHARED_PROBES[id(block)] = block
        while len(_SHARED_PROBES) > 8:
            _SHARED_PROBES.pop(next(iter(_SHARED_PROBES)))
    return block


class Reverse:
    """Jᵀ of K = J Jᵀ, whose blocks are seen through Gram matrices alone: XᵀX of X = JᵀZ is ZᵀKZ."""

    def __init__(self, kernel):
        self._kernel = kernel
        self.shape, self.epsilon, self.probes = kernel.shape, kernel.epsilon, kernel.probes

    @property
    def ledgers(self):
        return self._kernel.ledgers

    def apply(self, block):
        return block, self._kernel.apply(block)

    def gram(self, x, y):
        return self._kernel.gram(x[0], y[1])

    def inner(self, x, y):
        return self._kernel.inner(x[0], y[1])


class ProductOnce(ProductMap):
    """A product of dense kernels, multiplied once for all seeds."""

    def __init__(self, first, second):
        super().__init__(first, second)
        self._product = _product(first, second)

    def apply(self, block):
        return self._product @ block


@functools.lru_cache(maxsize=3)
def _product(first, second):
    return first.dense @ second.dense


def truth(metric, A, B=None):
    if metric == "trace":
        return np.trace(A)
    if metric == "frobenius_norm":
        return np.linalg.norm(A)
    if metric == "effective_rank":
        return np.trace(A) ** 2 / np.linalg.norm(A) ** 2
    product = np.sum(A * B)
    return product if metric == "inner_product" else product / np.linalg.norm(A) / np.linalg.norm(B)


# Runs: each takes (kernels, seed) to a run, and says how its result becomes estimates by metric.


def _shared(kind, metrics):
    """Metrics from the moments of one run."""

    def start(kernels, seed):
        count = max(kernels_of(metric) for metric in metrics)
        maps = [k.factor() if kind is GramRun else as_map(k) for k in kernels[:count]]

        def finish(moments):
            return {
                metric: evaluate(moments, metric, range(kernels_of(metric)), method="", cost=None, seed=seed)
                for metric in metrics
            }

        return _Named(MappedRun(kind(maps, seed=seed), finish), metrics), count

    return start


def _hutchpp(metric):
    """One metric by separate Hutch++ runs."""

    def start(kernels, seed):
        count = kernels_of(metric)
        wanted = [(metric, tuple(range(count)))]
        problem = Problem(tuple(kernels[:count]), moments_of(wanted), 0.01)
        run = HutchPlusPlus().start(problem, seed, ProgressListener()).run
        finish = lambda moments: evaluate(moments, *wanted[0], method="hutch++", cost=None, seed=seed)  # noqa: E731
        return _Named(MappedRun(run, finish), [metric]), count

    return start


def _hutchinson(kernels, seed):
    draw = two_sided_draw(as_map(kernels[0]), seed=seed)
    return _Named(HutchinsonRun(draw, method="hutchinson"), ["trace"]), 1


def _per_sample(kernels, seed):
    """The parts z_bᵀK_bb z_b of Σ_b z_bᵀK_bb z_b, as independent signs for every sample give them."""
    blocks = kernels[0].sample_blocks

    def draw(start, stop):
        signs = random_signs(kernels[0].shape[0], start, stop, seed=seed, stream=20).astype(np.float64)
        signs = signs[: blocks.shape[0] * blocks.shape[1]].reshape(*blocks.shape[:2], -1)
        return np.sum(signs * (blocks @ signs), axis=1).T

    return _Named(HutchinsonRun(draw, method="per-sample"), ["trace"]), 1


class _Named:
    """A run, and which metrics its result holds."""

    def __init__(self, run, metrics):
        self._run, self.metrics = run, metrics
        self.minimum, self.grow = run.minimum, run.grow

    def result(self):
        found = self._run.result()
        return found if isinstance(found, dict) else {self.metrics[0]: found}


METHODS = {
    "hutchinson": [_hutchinson],
    "per-sample": [_per_sample],
    "nystrom": [_shared(NystromRun, tuple(METRICS))],
    "gram": [_shared(GramRun, tuple(METRICS))],
    "sketch": [_shared(SketchRun, SINGLES), _shared(SketchRun, PAIRS)],
    "hutch++": [_hutchpp(metric) for metric in METRICS],
}
#: For one kernel's trace they go by the names of their papers.
TRACE_NAMES = {"sketch": "xtrace", "nystrom": "xnystrace"}


def kernel_pair(name, size=1000):
    pairs = [Dense(dense) for dense in pair(name, size)]
    if name in STATES:
        shape, axis = STATES[name]
        places = np.moveaxis(np.arange(pairs[0].shape[0]).reshape(shape), axis, 0).reshape(shape[axis], -1)
        pairs[0].sample_blocks = np.stack([pairs[0].dense[np.ix_(rows, rows)] for rows in places])
    return pairs


def coverage(name, kernels, chosen, seeds, budgets=(20, 60, 200), metrics=tuple(METRICS)):
    """One row a metric, method and budget a kernel: coverage, errors, widths."""
    found: dict[tuple[str, str, int], list] = {}
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        for method, start in [(each, start) for each in chosen for start in METHODS[each]]:
            run, count = start(kernels, seed)
            if not set(metrics) & set(run.metrics):
                continue
            for budget in budgets:
                if budget * count < run.minimum:
                    continue
                run.grow(budget * count)
                for metric, estimate in run.result().items():
                    if metric in metrics:
                        found.setdefault((metric, method, budget), []).append(estimate)
    A, B = (k.dense for k in kernels)
    return [
        {
            "kernel": name,
            "metric": metric,
            "method": TRACE_NAMES.get(method, method) if metric == "trace" else method,
            "products": budget,
            "seeds": len(estimates),
            **_summary(estimates, truth(metric, A, B)),
        }
        for (metric, method, budget), estimates in found.items()
    ]


def _summary(estimates, true):
    known = [e for e in estimates if e.stderr is not None]
    intervals = [e.interval() for e in known]
    error = np.array([abs(e.value / true - 1) for e in estimates])
    return {
        "covered": float(np.mean([low <= true <= high for low, high in intervals])) if known else None,
        "unknown": 1 - len(known) / len(estimates),
        "error": float(np.median(error)),
        "rms": float(np.sqrt(np.mean(error**2))),
        "half_width": float(np.median([(b - a) / 2 / abs(true) for a, b in intervals])) if known else None,
        "freedom": float(np.median([e.degrees_of_freedom for e in known])) if known else None,
    }


def _start(metric, operators, method, seed):
    """The run that a method makes of a metric."""
    wanted = [(metric, tuple(range(len(operators))))]
    problem = Problem(tuple(operators), moments_of(wanted), 0.01)
    way = next(iter(ways_of(metric, problem, method, Options())))
    run = way.start(problem, seed, ProgressListener()).run
    return MappedRun(
        run, lambda moments: evaluate(moments, *wanted[0], method=way.name, cost=None, seed=seed)
    )


def tolerance(name, kernels, metric, seeds, rtol=0.01, method="auto"):
    """Runs to a tolerance: how many miss twice of it, and what they spend."""
    operators = [kernel.dense for kernel in kernels[: kernels_of(metric)]]
    true = truth(metric, *(kernel.dense for kernel in kernels))
    function = getattr(estimators, metric)
    runs = [function(*operators, method=method, rtol=rtol, seed=seed) for seed in range(seeds)]
    spent = [run.cost.products for run in runs]
    starts = (_start(metric, operators, method, seed) for seed in range(seeds))
    return {
        "kernel": name,
        "metric": metric,
        "seeds": seeds,
        "within": float(np.mean([abs(run.value / true - 1) < 2 * rtol for run in runs])),
        "products": float(np.median(spent)),
        "most": max(spent),
        "best": _best_budget(starts, true, 2 * rtol, max(spent)),
        "method": runs[0].method,
    }


def _best_budget(starts, true, bound, most):
    """The smallest fixed budget with which 95% of runs end within the bound, or ``most``."""
    grid, errors = [], []
    for run in starts:
        if not grid:
            steps = run.minimum * 1.15 ** np.arange(100)
            grid = sorted({int(b) // run.quantum * run.quantum for b in steps if b < most})
        errors.append([])
        for budget in grid:
            run.grow(budget)
            with values_alone():
                errors[-1].append(abs(run.result().value / true - 1))
    within = np.mean(np.array(errors) < bound, axis=0) >= 0.95
    return next((budget for budget, good in zip(grid, within, strict=True) if good), most)


def values_alone():
    """Leaves out what only error bars need."""
    nothing = {"new": lambda small: None}
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(nystrom, "_left_out", **nothing))
    stack.enter_context(mock.patch.object(residuals, "_left_out", **nothing))
    return stack


def merge(path, rows):
    """Put rows into a JSON file, in place of those of the same case."""
    keys = ("kernel", "metric") if "best" in rows[0] else ("kernel", "metric", "method", "products")
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    fresh = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in known if tuple(row[key] for key in keys) not in fresh]
    everything = sorted(kept + rows, key=lambda row: tuple(row[key] for key in keys))
    partial = path.with_suffix(".partial")
    lines = ",\n".join(json.dumps(row) for row in everything)
    partial.write_text(f'{{"machine": {json.dumps(machine())},\n"rows": [\n{lines}\n]}}\n')
    partial.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--kernels", nargs="*", default=["mlp", "mnist", "gru", "flat"])
    parser.add_argument("--size", type=int, default=1000, help="n of the kernels made to order")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--metrics", nargs="*", default=list(METRICS), help="with --rtol")
    parser.add_argument("--budgets", nargs="*", type=int, default=[20, 60, 200])
    parser.add_argument("--rtol", action="store_true", help="measure runs to rtol=0.01 instead")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("error")
    for name in options.kernels:
        kernels = kernel_pair(name, options.size)
        if options.rtol:
            for metric in options.metrics:
                rows = [tolerance(name, kernels, metric, options.seeds)]
                merge(options.json or FOLDER / "tolerance.json", rows)
                report(rows)
            continue
        chosen = [m for m in options.methods if m != "per-sample" or name in STATES]
        with mock.patch.object(methods, "ProductMap", ProductOnce):
            rows = coverage(name, kernels, chosen, options.seeds, options.budgets)
        merge(options.json or FOLDER / "coverage.json", rows)
        report(rows)


def report(rows):
    for row in rows:
        print(*(f"{v:.3g}" if isinstance(v, float) else v for v in row.values()), flush=True)


if __name__ == "__main__":
    main()
