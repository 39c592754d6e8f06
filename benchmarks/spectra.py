"""Errors of every estimator against products, on kernels with known spectra (n = 1,000).

    python -m benchmarks.spectra --seeds 25

One run a seed grows through the budgets, and gives every metric that it can.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import coverage
from benchmarks.kernels import SPECTRA

METHODS = ("hutchinson", "hutch++", "sketch", "nystrom", "gram")
METRICS = ("trace", "frobenius_norm", "inner_product")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--budgets", nargs="*", type=int, default=[20, 60, 120, 200])
    parser.add_argument("--json", type=Path, default=coverage.FOLDER / "spectra.json")
    options = parser.parse_args()
    for name in SPECTRA:
        kernels = coverage.kernel_pair(name, options.size)
        rows = coverage.coverage(name, kernels, METHODS, options.seeds, options.budgets, METRICS)
        for row in rows:
            for key in ("covered", "unknown", "half_width", "freedom"):
                del row[key]
        coverage.merge(options.json, rows)
        coverage.report(rows)


if __name__ == "__main__":
    main()
