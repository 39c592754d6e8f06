"""Where probes see little: misses of rtol=0.01, and coverage of 95% intervals with budgets near n.

    python -m benchmarks.heavy_tails --seeds 400
    python -m benchmarks.heavy_tails --coverage --seeds 400

The kernels have heavy tails: log-normal norms, one sample 60 times as large as the others, two
dominant outputs, three active samples of 20,000. Rows are merged into the JSON file by kernel,
metric, method and budget.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

from benchmarks.timing import machine
from ntkscope import estimators

FILE = Path("results/estimators/heavy_tails.json")
RTOL = 0.01
# Methods whose error falls as 1/√m end here, converged or not; those that did not are no misses.
MOST = {"gram": 800, "hutchinson": 1500, "rhutch": 1500, "fhutch": 1500}
# Names for what another one does: `auto` is xnystrace for the trace, and sketch for everything else.
ALIASES = {"trace": ("sketch", "nystrom", "xnystrace")}
SINGLES = ("trace", "frobenius_norm", "effective_rank")
PAIRS = ("inner_product", "alignment")


class Factored:
    """K = J Jᵀ that offers J, with its numbers known."""

    def __init__(self, jacobian):
        self.jacobian = np.ascontiguousarray(jacobian, dtype=np.float64)
        self.shape, self.dtype = (len(jacobian),) * 2, self.jacobian.dtype

    def __matmul__(self, block):
        return self.jacobian @ (self.jacobian.T @ block)


def truth(metric, first, second):
    """A metric from the rows of J: tr K = ‖J‖², ⟨K₁, K₂⟩ = ‖J₁ᵀJ₂‖²."""
    trace = np.sum(first.jacobian**2)
    norm, other, product = (
        np.sum((a.jacobian.T @ b.jacobian) ** 2)
        for a, b in ((first, first), (second, second), (first, second))
    )
    return {
        "trace": trace,
        "frobenius_norm": np.sqrt(norm),
        "effective_rank": trace**2 / norm,
        "inner_product": product,
        "alignment": product / np.sqrt(norm * other),
    }[metric]


def _rows(rng, samples=60, outputs=10, parameters=400, inputs=30, scale=None):
    """J of `outputs` that share features of every sample, of shape (samples · outputs, parameters)."""
    features = rng.standard_normal((samples, inputs))
    features = features if scale is None else features * scale[:, None]
    heads = rng.standard_normal((outputs, inputs, parameters)) / np.sqrt(parameters)
    return np.einsum("bi,oip->bop", features, heads)


def _log_normal(rng):
    return _rows(rng, scale=np.exp(1.5 * rng.standard_normal(60)))


def _outlier(rng):
    scale = np.ones(60)
    scale[17] = 60
    return _rows(rng, scale=scale)


def _two_outputs(rng):
    rows = _rows(rng)
    rows[:, 3] = rows[:, 3] + 0.7 * rows[:, 7]
    rows[:, (3, 7)] *= 30
    return rows


def _three_active(rng):
    rows = np.zeros((20_000, 1, 40))
    for place, parameter in ((0, 0), (37, 1), (74, 2)):
        rows[place, 0, parameter] = 1
    return rows


KERNELS = {
    "log-normal": _log_normal,
    "outlier": _outlier,
    "two outputs": _two_outputs,
    "three active": _three_active,
}


def pair(name):
    """(K, K′), with K′ the kernel of the rows after a change of a third of their size."""
    rows = KERNELS[name](np.random.default_rng(list(KERNELS).index(name)))
    mixing = np.random.default_rng(99).standard_normal((rows.shape[2],) * 2) / np.sqrt(rows.shape[2])
    flat = rows.reshape(-1, rows.shape[2])
    return Factored(flat), Factored(flat + 0.33 * flat @ mixing)


def misses(name, metric, method, seeds):
    """Runs to rtol: how many miss by more than 2 and 5 of it, and what they spend."""
    kernels = pair(name)
    right = truth(metric, *kernels)
    operators = kernels if metric in PAIRS else kernels[:1]
    function = getattr(estimators, metric)
    limit = {"max_products": MOST[method]} if method in MOST else {}
    runs = [function(*operators, method, rtol=RTOL, seed=seed, **limit) for seed in range(seeds)]
    error = np.array([abs(run.value / right - 1) if run.converged is not False else 0 for run in runs])
    exact = [run.stderr == 0 for run in runs]
    spent = [run.cost.products or max(run.cost.vjps, run.cost.jvps) for run in runs]
    return {
        "kernel": name,
        "metric": metric,
        "method": method,
        "products": "rtol",
        "seeds": seeds,
        "over2": float(np.mean(error > 2 * RTOL)),
        "over5": int(np.sum(error > 5 * RTOL)),
        "worst": float(error.max()),
        "spent": float(np.median(spent)),
        "exact": float(np.mean(exact)),
        "unconverged": float(np.mean([run.converged is False for run in runs])),
    }


def near_n(n, metric, method, products, seeds):
    """95% intervals on well-conditioned kernels of every size, a new kernel for every seed."""
    covered, known, shift, tight = [], 0, [], []
    for seed in range(seeds):
        first, second = (
            Factored(np.random.default_rng([seed, n, which]).standard_normal((n, 2 * n))) for which in (0, 1)
        )
        operators = (first, second) if metric in PAIRS else (first,)
        count = len(operators)
        estimate = getattr(estimators, metric)(*operators, method, products=products * count, seed=seed)
        right = truth(metric, first, second)
        shift.append(estimate.value / right - 1)
        if estimate.stderr is None:
            continue
        known += 1
        low, high = estimate.interval()
        slack = 1e-9 * abs(right)
        covered.append(low - slack <= right <= high + slack)
        tight.append((high - low) / 2 / abs(right))
    shift = np.array(shift)
    return {
        "kernel": f"n={n}",
        "metric": metric,
        "method": method,
        "products": products,
        "seeds": seeds,
        "covered": float(np.mean(covered)) if covered else None,
        "unknown": 1 - known / seeds,
        "z": float(shift.mean() / (shift.std(ddof=1) / np.sqrt(seeds))),
        "rms": float(np.sqrt(np.mean(shift**2))),
        "half_width": float(np.median(tight)) if tight else None,
    }


def merge(rows):
    """Put rows into the JSON file, in place of those of the same case."""
    keys = ("kernel", "metric", "method", "products")
    known = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    fresh = {tuple(str(row[key]) for key in keys) for row in rows}
    kept = [row for row in known if tuple(str(row[key]) for key in keys) not in fresh]
    ordered = sorted(kept + rows, key=lambda row: tuple(str(row[key]) for key in keys))
    lines = ",\n".join(json.dumps(row) for row in ordered)
    partial = FILE.with_suffix(".partial")
    partial.write_text(f'{{"machine": {json.dumps(machine())},\n"rows": [\n{lines}\n]}}\n')
    partial.replace(FILE)


def _cases(options):
    for metric in options.metrics:
        known = ("exact", *ALIASES.get(metric, ("sketch",)))
        methods = [m for m in estimators.METHODS[metric] if m not in known]
        for method in [m for m in methods if not options.methods or m in options.methods]:
            if not options.coverage:
                for name in options.kernels:
                    yield lambda name=name, metric=metric, method=method: misses(
                        name, metric, method, options.seeds
                    )
                continue
            for n in options.sizes:
                least = 4 if method in ("sketch", "xtrace") else 3 if method in ("gram", "hutch++") else 2
                least = (6 if method in ("sketch", "hutch++") else 3) if metric in PAIRS else least
                for products in sorted({max(least, n - 1), max(least, n // 2)}):
                    if products < n:
                        yield lambda n=n, m=metric, method=method, products=products: near_n(
                            n, m, method, products, options.seeds
                        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--coverage", action="store_true", help="95%% intervals with n - 1 and n/2 products")
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS))
    parser.add_argument("--sizes", nargs="*", type=int, default=[6, 8, 10, 16, 32, 100])
    parser.add_argument("--metrics", nargs="*", default=[*SINGLES, *PAIRS])
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--dry", action="store_true", help="write no file")
    options = parser.parse_args()
    warnings.simplefilter("error")
    for case in _cases(options):
        try:
            row = case()
        except ValueError as error:
            print("refused:", error, flush=True)
            continue
        if not options.dry:
            merge([row])
        print(*(f"{v:.3g}" if isinstance(v, float) else v for v in row.values()), flush=True)


if __name__ == "__main__":
    main()
