"""The MNIST kernels by products alone: errors from 360 products a kernel, and the time to 1%.

    python -m benchmarks.products            errors and budgets of both ways (about 20 minutes)
    python -m benchmarks.products time       time to 1% of both ways, with the budgets found before

The paper's way is separate Hutch++ runs for every metric. Its errors come from the same kernels as
dense float32 matrices, ours from NTK products; the times are of NTK products for both.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.coverage import values_alone
from benchmarks.timing import Contender, in_turn, machine
from ntkscope import estimators
from ntkscope.ways.products import Request, make_runs

PATH = Path("results/estimators/mnist_products.json")
#: What 360 products a kernel are to reach in the median.
BOUNDS = {"alignment": 1e-4, "frobenius_norm": 5e-5, "trace": 1e-3, "effective_rank": 1e-4}
PRODUCTS = 720
LOOSE = 0.01


def truths(kernels):
    """Every metric of both kernels: {(metric, kernel): value}, the alignment under kernel 0."""
    norms = [np.linalg.norm(K) for K in kernels]
    found = {("alignment", 0): np.sum(kernels[0] * kernels[1]) / norms[0] / norms[1]}
    for index, K in enumerate(kernels):
        found["trace", index] = np.trace(K)
        found["frobenius_norm", index] = norms[index]
        found["effective_rank", index] = np.trace(K) ** 2 / norms[index] ** 2
    return found


def values(measurements, traces=None):
    """The same of measurements; with exact traces, they make the effective ranks."""
    found = {("alignment", 0): measurements[0].alignment[0].value}
    for index, measured in enumerate(measurements):
        norm = measured.frobenius_norm.value
        found["trace", index] = measured.trace.value
        found["frobenius_norm", index] = norm
        found["effective_rank", index] = (
            measured.effective_rank.value if traces is None else traces[index] ** 2 / norm**2
        )
    return found


def medians(runs, true):
    """Median relative errors by metric and kernel."""
    return {key: float(np.median([abs(run[key] / true[key] - 1) for run in runs])) for key in true}


def ours(cases, true, seeds):
    """Median errors of one sketch of both kernels, by NTK products, with the per-sample trace or without."""
    kernels = [case.kernel() for case in cases]
    traces = [kernel.trace("exact") for kernel in kernels]
    runs = []
    for seed in range(seeds):
        runs.append(estimators.measure_all(kernels, "sketch", products=PRODUCTS, seed=seed))
        spent = runs[-1][0].cost.products
        assert spent <= PRODUCTS, spent
    exact = [trace.value for trace in traces]
    rows = []
    for trace_by, source in (("products", None), ("per sample", exact)):
        errors = medians([values(run, source) for run in runs], true)
        rows += [
            {"metric": metric, "kernel": index, "trace by": trace_by, "products": PRODUCTS, "error": error}
            for (metric, index), error in errors.items()
            if trace_by == "products" or metric == "effective_rank"
        ]
    return rows


def curve(start, true, seeds, until, most, first):
    """Median errors of runs as they grow: [[products, {key: error}]], to where none is above ``until``."""
    grid = list(itertools.takewhile(lambda b: b < most, (int(first * 1.2**step) for step in range(100))))
    # Three runs say how far to go; every run is let go before the next.
    scouts, points = [start(seed) for seed in range(3)], []
    end = 0
    for budget in grid:
        end += 1
        for run in scouts:
            run.grow(budget)
        with values_alone():
            errors = medians([run.result() for run in scouts], true)
        if all(errors[key] <= until[key] / 2 for key in true):
            break
    scouts, grid = [], grid[: end + 2]
    found = []
    for seed in range(seeds):
        run, results = start(seed), []
        for budget in grid:
            run.grow(budget)
            with values_alone():
                results.append(run.result())
        found.append(results)
    for budget, runs in zip(grid, zip(*found, strict=True), strict=True):
        points.append([budget, medians(runs, true)])
    return points


def smallest(points, key, bound, most):
    """The smallest budget of a curve within the bound; ``most`` where the curve does not reach it."""
    return next((budget for budget, errors in points if errors[key] <= bound), most)


class Keyed:
    """A run of estimators with its result by metric and kernel."""

    def __init__(self, run, read):
        self.grow, self._run, self._read = run.grow, run, read

    def result(self):
        return self._read(self._run.result())


def paper_curves(kernels, true, seeds, until):
    """{(metric, kernel): curve} of Hutch++ runs for one metric of one kernel or pair each."""
    curves = {}
    for key in true:
        metric, index = key
        operators = kernels if metric == "alignment" else [kernels[index]]

        def start(seed, metric=metric, operators=operators, key=key):
            run, _ = make_runs(Request(metric, operators, "hutch++", seed))
            return Keyed(run, lambda found, key=key: {key: found.value})

        most = _most(kernels, metric)
        first = {"trace": 6, "frobenius_norm": 12, "effective_rank": 18, "alignment": 36}[metric]
        curves[key] = curve(start, {key: true[key]}, seeds, until, most, first)
        print(key, *((budget, f"{errors[key]:.1e}") for budget, errors in curves[key]), flush=True)
    return curves


def sketch_budget(kernels, true, seeds, traces=None):
    """The smallest budget, both kernels together, at which one sketch has every metric within 1%."""

    def start(seed):
        run, _ = make_runs(Request("measure_all", kernels, "sketch", seed))
        return Keyed(run, lambda found: values(found, traces))

    keys = [key for key in true if traces is None or key[0] != "trace"]
    wanted = {key: true[key] for key in keys}
    points = curve(start, wanted, seeds, dict.fromkeys(keys, LOOSE), 2 * len(kernels[0]), 12)
    return next(budget for budget, errors in points if max(errors.values()) <= LOOSE)


def sketch_part(seeds):
    """Errors of one sketch of both kernels, and what it spends on 1%."""
    cases = models.mnist_mlps()
    kernels = dense(cases)
    true = truths(kernels)
    exact = [true["trace", index] for index in (0, 1)]
    kernels = [kernel.astype(np.float32) for kernel in kernels]
    return {
        "n": len(kernels[0]),
        "seeds": seeds,
        "bounds": BOUNDS,
        "rows": ours(cases, true, seeds),
        "to 1%": sketch_budget(kernels, true, seeds),
        "to 1%, per-sample trace": sketch_budget(kernels, true, seeds, exact),
        "truth": {f"{metric} {index}": value for (metric, index), value in true.items()},
        "machine": machine(),
    }


def paper_part(seeds, reached):
    """What a Hutch++ run for every metric spends on 1%, on the bounds, and on the sketch's errors."""
    kernels = dense(models.mnist_mlps())
    true = truths(kernels)
    # In single precision, as the NTK products are.
    kernels = [kernel.astype(np.float32) for kernel in kernels]
    until = {key: BOUNDS["trace"] if key[0] == "trace" else min(reached[key], BOUNDS[key[0]]) for key in true}
    rows = []
    for key, points in paper_curves(kernels, true, seeds, until).items():
        metric, index = key
        most = _most(kernels, metric)
        rows.append(
            {
                "metric": metric,
                "kernel": index,
                "most": most,
                "to 1%": smallest(points, key, LOOSE, most),
                "to the bound": smallest(points, key, BOUNDS[metric], most),
                "to our error": None if metric == "trace" else smallest(points, key, reached[key], most),
                "curve": [[budget, float(f"{errors[key]:.3g}")] for budget, errors in points],
            }
        )
    return {"seeds": seeds, "rows": rows, "machine": machine()}


def _most(kernels, metric):
    """Where a search ends: at a quarter of what exact costs."""
    return len(kernels[0]) * (2 if metric == "alignment" else 1) // 4


def dense(cases):
    return [case.kernel().to_dense().double().numpy() for case in cases]


def contenders(known):
    """The ways to every metric of both kernels to 1%, on NTK products."""
    before, after = (case.kernel() for case in models.mnist_mlps())
    kernels, counter = [before, after], itertools.count(1000)
    budgets = {(row["metric"], row["kernel"]): row["to 1%"] for row in known["hutch++"]["rows"]}

    def paper():
        for (metric, index), budget in budgets.items():
            operators = kernels if metric == "alignment" else [kernels[index]]
            options = {"method": "hutch++", "products": budget, "seed": next(counter)}
            getattr(estimators, metric)(*operators, **options)

    def sketch():
        budget = known["sketch"]["to 1%"]
        estimators.measure_all(kernels, "sketch", products=budget, seed=next(counter))

    def sketch_and_trace():
        budget = known["sketch"]["to 1%, per-sample trace"]
        estimators.measure_all(kernels, "sketch", products=budget, seed=next(counter))
        return [kernel.trace("exact") for kernel in kernels]

    return [
        Contender("hutch++, a run for every metric", paper, note=f"{sum(budgets.values())} products"),
        Contender("one sketch", sketch, note=f"{known['sketch']['to 1%']} products"),
        Contender(
            "one sketch, per-sample trace",
            sketch_and_trace,
            note=f"{known['sketch']['to 1%, per-sample trace']} products",
        ),
        Contender("measure(), auto", lambda: before.measure([after]), note="exact"),
        Contender(
            "measure(method='sketch'), 1%",
            lambda: before.measure([after], method="sketch", seed=next(counter)),
            note="to an error bar of 1%",
        ),
    ]


def times(known, repeats):
    rows = in_turn(contenders(known), repeats)
    return {
        "repeats": repeats,
        "baseline": rows[0].name,
        "rows": [
            {
                "name": row.name,
                "note": row.note,
                "median": row.median,
                "quartiles": row.quartiles,
                "speedup": rows[0].ratio_to(row),
            }
            for row in rows
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["sketch", "hutch++"], help="of sketch, hutch++, time")
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, default=PATH)
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json.exists() else {}
    for part in options.parts:
        if part == "sketch":
            known[part] = sketch_part(options.seeds)
        elif part == "hutch++":
            rows = known["sketch"]["rows"]
            by = {"effective_rank": "per sample"}
            reached = {
                (row["metric"], row["kernel"]): row["error"]
                for row in rows
                if row["trace by"] == by.get(row["metric"], "products")
            }
            known[part] = paper_part(options.seeds, reached)
        else:
            known[part] = times(known, options.repeats) | {"machine": machine()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(known, indent=1) + "\n")
        print(json.dumps(known[part], indent=1)[-1500:], flush=True)


if __name__ == "__main__":
    main()
