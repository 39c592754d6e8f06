"""Kernels as dense float64 matrices: of real models, and with spectra made to order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ntkscope
from benchmarks import models

#: Where dense kernels of models are kept between runs.
CACHE = Path(tempfile.gettempdir()) / "ntkscope-kernels"

SPECTRA = {
    "flat": lambda n: 3 - 2 * np.arange(n) / (n - 1),
    "polynomial": lambda n: 1 / np.arange(1, n + 1) ** 2.0,
    "slow": lambda n: 0.9 ** np.arange(n),
    "fast": lambda n: 0.7 ** np.arange(n),
    "step": lambda n: np.where(np.arange(n) < n // 20, 1.0, 1e-3),
    "deep step": lambda n: np.where(np.arange(n) < n // 20, 1.0, 1e-8),
}

#: For the per-sample estimate: the shape of the state, and which of its axes holds the samples.
STATES = {"mlp": ((50, 64), 0), "gru": ((6, 5, 64), 1), "mnist": ((200, 10), 0)}


def kernel(values, seed=0):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (vectors * values) @ vectors.T


def pair(name, size=1000):
    """(K, K′) by name: of a model at two moments of its training, or K and (K + K″)/2 of one spectrum."""
    if name in SPECTRA:
        index = list(SPECTRA).index(name)
        first = kernel(SPECTRA[name](size), seed=index)
        return first, 0.5 * first + 0.5 * kernel(SPECTRA[name](size), seed=100 + index)
    path = CACHE / f"{name}.npz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        first, second = MODELS[name]()
        np.savez(path, first=first, second=second)
    with np.load(path) as found:
        return found["first"], found["second"]


def _mlp():
    """The MLP of the paper, n = 3,200, at its start and after 50 steps towards random targets."""
    case = models.paper_mlp()
    return _before_and_after(case.model.double(), case.inputs.double(), case.outputs, 0)


def _gru():
    """A GRU of the paper's width, 6 steps of 5 samples, n = 1,920, likewise."""
    torch.manual_seed(0)
    inputs = torch.randn(6, 5, 10, dtype=torch.float64)
    return _before_and_after(nn.GRU(10, 64).double(), inputs, lambda y: y[0], 1)


def _mnist():
    """The MNIST MLP on 200 digits, n = 2,000, after and before training."""
    before, after = models.mnist_mlps()
    inputs = before.inputs[:200].double()
    first = _dense(after.model.double(), inputs, after.outputs, 0)
    return first, _dense(before.model.double(), inputs, before.outputs, 0)


MODELS = {"mlp": _mlp, "gru": _gru, "mnist": _mnist}


def _before_and_after(
    model: nn.Module, inputs: Tensor, outputs: Callable[..., Tensor], batch_dim: int, steps: int = 50
):
    first = _dense(model, inputs, outputs, batch_dim)
    torch.manual_seed(1)
    with torch.no_grad():
        target = torch.randn_like(outputs(model(inputs)))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (outputs(model(inputs)) - target).square().mean().backward()
        optimizer.step()
    return first, _dense(model, inputs, outputs, batch_dim)


def _dense(model, inputs, outputs, batch_dim):
    return ntkscope.NTK(model, inputs, outputs=outputs, batch_dim=batch_dim).to_dense().numpy()
