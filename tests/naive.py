"""The papers' estimators, transcribed line by line on dense matrices."""

from __future__ import annotations

import numpy as np


def hutchinson(A, G):
    """E ωᵀAω = tr A."""
    return np.mean([g @ A @ g for g in G.T])


def hutch_plus_plus(A, S, G):
    """arXiv 2010.09649, algorithm 1, with residual probes of their expected length (2301.07825)."""
    Q, _ = np.linalg.qr(A @ S)
    projected = G - Q @ (Q.T @ G)
    projected *= np.sqrt((A.shape[0] - Q.shape[1]) / np.sum(projected**2, axis=0))
    return np.trace(Q.T @ A @ Q) + np.trace(projected.T @ A @ projected) / G.shape[1]


def xtrace(A, Omega):
    """arXiv 2301.07825, section 2.1 with normalised residual probes: one QR for every probe left out."""
    n, k = Omega.shape
    samples = []
    for i in range(k):
        Q, _ = np.linalg.qr(A @ np.delete(Omega, i, axis=1))
        probe = Omega[:, i] - Q @ (Q.T @ Omega[:, i])
        scale = (n - k + 1) / (probe @ probe)
        samples.append(np.trace(Q.T @ A @ Q) + scale * probe @ A @ probe)
    return np.array(samples)


def shared_sketch(A, B, Omega):
    """⟨A, B⟩ with a basis from both kernels, every probe left out in turn, block by block."""
    n, k = Omega.shape
    samples = []
    for i in range(k):
        others = np.delete(Omega, i, axis=1)
        Q, _ = np.linalg.qr(np.hstack([A @ others] if A is B else [A @ others, B @ others]))
        P = np.eye(n) - Q @ Q.T
        probe = P @ Omega[:, i]
        scale = (n - Q.shape[1]) / (probe @ probe)
        inside = np.sum((Q.T @ A @ Q) * (Q.T @ B @ Q)) + 2 * np.sum((P @ A @ Q) * (P @ B @ Q))
        samples.append(inside + scale * (P @ A @ probe) @ (P @ B @ probe))
    return np.array(samples)


def nystrom(A, Omega):
    """A Ω (Ωᵀ A Ω)⁻¹ Ωᵀ A."""
    Y = A @ Omega
    return Y @ np.linalg.solve(Omega.T @ Y, Y.T)


def xnystrace(A, Omega):
    """arXiv 2301.07825, section 2.3: one Nyström approximation for every probe left out."""
    n, k = Omega.shape
    samples = []
    for i in range(k):
        others = np.delete(Omega, i, axis=1)
        approximation = nystrom(A, others)
        Q, _ = np.linalg.qr(others)
        probe = Omega[:, i] - Q @ (Q.T @ Omega[:, i])
        scale = (n - k + 1) / (probe @ probe)
        samples.append(np.trace(approximation) + scale * probe @ (A - approximation) @ probe)
    return np.array(samples)


def nystrom_inner(A, B, Omega):
    """⟨A, B⟩ from the Nyström approximations without one probe and what they miss of that probe."""
    samples = []
    for i in range(Omega.shape[1]):
        others, probe = np.delete(Omega, i, axis=1), Omega[:, i]
        a, b = nystrom(A, others), nystrom(B, others)
        samples.append(np.sum(a * b) + (A @ probe) @ (B @ probe) - (a @ probe) @ (b @ probe))
    return np.array(samples)


def gram(A, B, Omega):
    """Mean over i ≠ j of (ωᵢᵀAωⱼ)(ωᵢᵀBωⱼ)."""
    k = Omega.shape[1]
    a, b = Omega.T @ A @ Omega, Omega.T @ B @ Omega
    return np.mean([a[i, j] * b[i, j] for i in range(k) for j in range(k) if i != j])
