"""Errors of every estimator against products, on kernels with known spectra (n = 1,000).

python -m benchmarks.spectra --seeds 20 --json spectra.json
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from ntkscope import estimators

SPECTRA = {
    "flat": lambda n: 3 - 2 * np.arange(n) / (n - 1),
    "polynomial": lambda n: 1 / np.arange(1, n + 1) ** 2.0,
    "slow": lambda n: 0.9 ** np.arange(n),
    "fast": lambda n: 0.7 ** np.arange(n),
    "step": lambda n: np.where(np.arange(n) < n // 20, 1.0, 1e-3),
    "deep step": lambda n: np.where(np.arange(n) < n // 20, 1.0, 1e-8),
}
TRACE = ("hutchinson", "hutch++", "xtrace", "xnystrace")
SQUARE = ("hutch++", "sketch", "nystrom")


def kernel(values, seed=0):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (vectors * values) @ vectors.T


def errors(function, operators, true, method, products, seeds):
    found = [float(function(*operators, method=method, products=products, seed=s)) for s in range(seeds)]
    return float(np.median(np.abs(np.array(found) / true - 1)))


def table(n, budgets, seeds):
    rows = []
    for name, spectrum in SPECTRA.items():
        A = kernel(spectrum(n))
        B = 0.5 * A + 0.5 * kernel(spectrum(n), seed=1)
        cases = [
            ("trace", (A,), np.trace(A), TRACE),
            ("frobenius_norm", (A,), np.linalg.norm(A), SQUARE),
            ("inner_product", (A, B), np.sum(A * B), SQUARE),
        ]
        for metric, operators, true, methods in cases:
            for method in methods:
                function = getattr(estimators, metric)
                row = {"spectrum": name, "metric": metric, "method": method}
                for budget in budgets:
                    row[str(budget)] = errors(
                        function, operators, true, method, budget * len(operators), seeds
                    )
                rows.append(row)
                print(markdown(row, budgets), flush=True)
    return rows


def markdown(row, budgets):
    cells = [row["spectrum"], row["metric"], row["method"], *(f"{row[str(b)]:.1e}" for b in budgets)]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budgets", nargs="*", type=int, default=[20, 60, 120, 200])
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = table(options.size, options.budgets, options.seeds)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
