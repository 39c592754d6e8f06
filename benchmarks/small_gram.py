"""How often 95% intervals of `gram` cover on small kernels, with n/2 and n - 1 products.

    python -m benchmarks.small_gram --seeds 400

Prints for matrices of n = 6 to 100, of normal entries and of a spectrum 1/k²: the share of intervals that
cover, and the relative bias of the mean. A norm and an effective rank are a root and a ratio of unbiased
moments, so few products leave a bias of second order: low for the norm, high for the rank.
"""

from __future__ import annotations

import argparse

import numpy as np

from ntkscope import estimators

SIZES = (6, 8, 10, 20, 50, 100)
METRICS = ("frobenius_norm", "effective_rank")


class Factored:
    """K = J Jᵀ that offers J."""

    def __init__(self, jacobian):
        self.jacobian, self.dtype = jacobian, jacobian.dtype
        self.shape = (len(jacobian), len(jacobian))

    def __matmul__(self, block):
        return self.jacobian @ (self.jacobian.T @ block)


def _jacobians(n):
    rng = np.random.default_rng(n)
    directions = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return {"normal": rng.normal(size=(n, 2 * n)), "decay": directions / np.arange(1, n + 1)}


def covered(jacobian, metric, products, seeds):
    """(share of intervals that cover, relative bias); no share where no error bar is known."""
    kernel, measure = Factored(jacobian), getattr(estimators, metric)
    right = measure(kernel, "exact").value
    found = [measure(kernel, "gram", products=products, seed=seed) for seed in range(seeds)]
    bars = [estimate.interval() for estimate in found if estimate.stderr is not None]
    share = np.mean([low <= right <= high for low, high in bars]) if bars else None
    return share, np.mean([estimate.value for estimate in found]) / right - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    seeds = parser.parse_args().seeds
    for n in SIZES:
        for name, jacobian in _jacobians(n).items():
            for products in sorted({max(3, n // 2), n - 1}):
                for metric in METRICS:
                    share, bias = covered(jacobian, metric, products, seeds)
                    words = "not known" if share is None else f"{share:.1%}"
                    print(
                        f"{n:4} {name:7} {products:3} products {metric:15} {words:>9} {bias:+.3f}", flush=True
                    )


if __name__ == "__main__":
    main()
