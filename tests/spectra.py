"""Dense symmetric operators with known spectra."""

from __future__ import annotations

import numpy as np


def spectrum(name, n):
    """Eigenvalues, largest first."""
    i = np.arange(1, n + 1)
    return {
        "flat": 3 - 2 * (i - 1) / (n - 1),
        "polynomial": 1 / i**2.0,
        "slow": 0.9 ** (i - 1),
        "fast": 0.7 ** (i - 1),
        "step": np.where(i <= n // 20, 1.0, 1e-3),
        "deep step": np.where(i <= n // 20, 1.0, 1e-8),
    }[name]


def kernel(values, seed=0):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (vectors * values) @ vectors.T


def low_rank(n, rank, seed=0):
    """A kernel of this rank."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n, rank))
    return factor @ factor.T
