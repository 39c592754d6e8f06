"""How often 95% intervals cover the truth, and where rtol=0.01 ends.

    python -m benchmarks.coverage --seeds 400 --json coverage.json
    python -m benchmarks.coverage --rtol --seeds 200

Another script may call `coverage` and `tolerance` with its own kernels, as dense
matrices or as maps; the truth comes from dense matrices.
"""

from __future__ import annotations

import argparse
import functools
import json
import warnings

import numpy as np

from benchmarks.spectra import SPECTRA, kernel
from ntkscope import estimators
from ntkscope.estimators import run as driver

METHODS = {
    "trace": ("hutchinson", "hutch++", "xnystrace", "xtrace", "gram"),
    "frobenius_norm": ("hutch++", "sketch", "nystrom", "gram"),
    "effective_rank": ("hutch++", "sketch", "nystrom", "gram"),
    "inner_product": ("hutch++", "sketch", "nystrom", "gram"),
    "alignment": ("hutch++", "sketch", "nystrom", "gram"),
}
PAIRS = ("inner_product", "alignment")


class Factored:
    """A dense kernel that offers K = J Jᵀ with J its symmetric root, for reverse mode alone."""

    def __init__(self, dense):
        self.dense = np.asarray(dense, dtype=np.float64)
        self.shape = self.dense.shape
        self.dtype = self.dense.dtype
        values, vectors = np.linalg.eigh(self.dense)
        self.root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def __matmul__(self, block):
        return self.dense @ block

    def _reverse_map(self):
        return estimators.as_map(self.root)


def truth(metric, A, B=None):
    if metric == "trace":
        return np.trace(A)
    if metric == "frobenius_norm":
        return np.linalg.norm(A)
    if metric == "effective_rank":
        return np.trace(A) ** 2 / np.linalg.norm(A) ** 2
    product = np.sum(A * B)
    return product if metric == "inner_product" else product / np.linalg.norm(A) / np.linalg.norm(B)


def quantiles():
    """The intervals ask for many quantiles of Student's t: remember them at rounded arguments."""
    from ntkscope import estimate

    original = estimate.student_t_quantile
    table = functools.lru_cache(maxsize=None)(original)

    def rounded(probability, freedom):
        return table(probability, freedom if freedom > 1e5 else float(f"{freedom:.2g}"))

    estimate.student_t_quantile = rounded
    driver.student_t_quantile = rounded


def coverage(kernels, seeds, budgets=(20, 60, 200), methods=METHODS):
    """One row a kernel, metric, method and budget a kernel: coverage and errors."""
    rows = []
    for name, (A, B) in kernels.items():
        operators = {"one": (Factored(A),), "two": (Factored(A), Factored(B))}
        for metric, chosen_methods in methods.items():
            function = getattr(estimators, metric)
            chosen = operators["two" if metric in PAIRS else "one"]
            true = truth(metric, A, B)
            for method in chosen_methods:
                for budget in budgets:
                    rows.append(_row(function, chosen, true, method, budget * len(chosen), seeds))
                    rows[-1] |= {"kernel": name, "metric": metric, "method": method, "products": budget}
                    print(*(rows[-1][key] for key in ("kernel", "metric", "method", "products")), end=" ")
                    numbers = ("covered", "error", "half", "unknown")
                    print(*(f"{rows[-1][key]:.3g}" for key in numbers), flush=True)
    return rows


def _row(function, operators, true, method, products, seeds):
    covered, errors, halves, unknown = [], [], [], 0
    for seed in range(seeds):
        try:
            found = function(*operators, method=method, products=products, seed=seed)
        except ValueError as error:
            if "too small" not in str(error):
                raise
            return {"covered": np.nan, "error": np.nan, "half": np.nan, "unknown": 1.0}
        errors.append(abs(found.value / true - 1))
        if found.stderr is None:
            unknown += 1
            continue
        low, high = found.interval()
        covered.append(low <= true <= high)
        halves.append((high - low) / 2 / abs(true))
    return {
        "covered": float(np.mean(covered)) if covered else np.nan,
        "error": float(np.median(errors)),
        "half": float(np.median(halves)) if halves else np.nan,
        "unknown": unknown / seeds,
    }


def tolerance(kernels, seeds, rtol=0.01, metrics=tuple(METHODS), method="auto"):
    """Runs to a tolerance: how many miss twice of it, and what they spend."""
    rows = []
    for name, (A, B) in kernels.items():
        for metric in metrics:
            operators = (A, B) if metric in PAIRS else (A,)
            function, true = getattr(estimators, metric), truth(metric, A, B)
            runs = [function(*operators, method=method, rtol=rtol, seed=seed) for seed in range(seeds)]
            spent = float(np.median([run.cost.products for run in runs]))
            good = np.mean([abs(run.value / true - 1) < 2 * rtol for run in runs])
            best = _best_budget(function, operators, true, method, 2 * rtol, min(seeds, 60))
            rows.append(
                {"kernel": name, "metric": metric, "within": float(good), "products": spent, "best": best}
            )
            print(rows[-1], flush=True)
    return rows


def _best_budget(function, operators, true, method, bound, seeds):
    """The smallest fixed budget with which 95% of runs end within the bound."""
    budget = 4 * len(operators) ** 2
    while budget < operators[0].shape[0] * len(operators):
        try:
            runs = [function(*operators, method=method, products=budget, seed=s) for s in range(seeds)]
            if np.mean([abs(run.value / true - 1) < bound for run in runs]) >= 0.95:
                return budget
        except ValueError:
            pass
        budget = int(np.ceil(budget * 1.15))
    return budget


def synthetic(n, names=("flat", "polynomial", "slow", "fast", "step")):
    """Named pairs (K, K′): K′ shares part of K's spectrum and half of its directions."""
    pairs = {}
    for index, name in enumerate(names):
        first = kernel(SPECTRA[name](n), seed=index)
        pairs[name] = (first, 0.5 * first + 0.5 * kernel(SPECTRA[name](n), seed=100 + index))
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--kernels", nargs="*", default=["flat", "polynomial", "slow", "fast", "step"])
    parser.add_argument("--metrics", nargs="*", default=list(METHODS))
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--budgets", nargs="*", type=int, default=[20, 60, 200])
    parser.add_argument("--rtol", action="store_true", help="measure runs to rtol=0.01 instead")
    parser.add_argument("--json")
    options = parser.parse_args()
    quantiles()
    warnings.simplefilter("error")
    kernels = synthetic(options.size, options.kernels)
    if options.rtol:
        rows = tolerance(kernels, options.seeds, metrics=options.metrics)
    else:
        methods = {
            metric: [m for m in METHODS[metric] if not options.methods or m in options.methods]
            for metric in options.metrics
        }
        rows = coverage(kernels, options.seeds, options.budgets, methods)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
