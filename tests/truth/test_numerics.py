"""Scales, ranks and offsets at the edge of a dtype: right numbers, or none that is called exact."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK, estimators
from truth.reference import Dense, dense
from truth.verdict import assert_right


class Scaled(nn.Module):
    """A network whose last layer has the scale of its physical unit."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body, self.scale = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale


def _wide(model: nn.Module, x: Tensor) -> Dense:
    twin, inputs = copy.deepcopy(model).double(), x.double()
    return dense(twin, lambda: twin(inputs))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e14),
        (torch.float32, 1e-14),
        (torch.float32, 1e10),
        (torch.float16, 300.0),
        (torch.float16, 3e-3),
    ],
)
@pytest.mark.parametrize("batch_dim", [0, None])
def test_scales(dtype: torch.dtype, scale: float, batch_dim: int | None) -> None:
    torch.manual_seed(0)
    model, x = Scaled(scale).to(dtype), torch.randn(5, 4).to(dtype)
    right, ntk = _wide(model, x), NTK(model, x, batch_dim=batch_dim)
    rtol = 1e-4 if dtype == torch.float32 else 0.02
    for name, value in right.metrics():
        assert_right(getattr(ntk, name)(method="exact"), value, rtol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["convolution", "attention", "recurrence"])
def test_sketch_in_half_precision(dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "convolution":
        model: nn.Module = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
        x = torch.randn(20, 2, 8)
    elif kind == "attention":
        model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        x = torch.randn(10, 4, 4)
    else:
        model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 12))
        x = torch.randn(20, 4)
    right = _wide(model.to(dtype), x.to(dtype))
    measurement = NTK(model, x.to(dtype)).measure(method="sketch", products=24)
    assert_right(measurement.trace, right.trace, 0.05)
    assert_right(measurement.frobenius_norm, right.frobenius_norm, 0.05)


@pytest.mark.parametrize("metric", ["trace", "frobenius_norm", "effective_rank"])
@pytest.mark.parametrize("method", ["auto", "exact", "sketch", "nystrom", "hutch++"])
@pytest.mark.parametrize("rank", [0, 1])
def test_zero_and_rank_one_matrices(metric: str, method: str, rank: int) -> None:
    vector = np.linspace(1, 2, 30)
    kernel = rank * np.outer(vector, vector)
    right = {"effective_rank": 1.0 if rank else math.nan}.get(metric, float(rank * vector @ vector))
    products = None if method in ("auto", "exact") else 12
    assert_right(getattr(estimators, metric)(kernel, method=method, products=products), right, 1e-6)


@pytest.mark.parametrize("method", ["auto", "sketch", "nystrom", "gram", "hutch++"])
@pytest.mark.parametrize("kind", ["zero", "one parameter"])
def test_zero_and_rank_one_models(method: str, kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.randn(40, 1, dtype=torch.double) * (kind != "zero")
    right = dense(model, lambda: model(x))
    measurement = NTK(model, x).measure(method=method, products=None if method == "auto" else 24)
    assert_right(measurement.trace, right.trace, 1e-6)
    assert_right(measurement.frobenius_norm, right.frobenius_norm, 1e-6)


class Contrast(nn.Module):
    """A layer of sequences far from zero, of which only differences of positions are seen."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Conv1d(16, 12, 1) if kind == "convolution" else nn.Linear(16, 12)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.mT).mT if self.kind == "convolution" else self.layer(x)
        return y[:, 1:] - y[:, :-1] if self.kind == "differences" else y - y.mean(1, keepdim=True)


@pytest.mark.parametrize("kind", ["convolution", "differences", "mean"])
def test_offsets_that_cancel(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Contrast(kind), torch.randn(3, 8, 16) + 3e3
    right = _wide(model, x)
    ntk = NTK(model, x)
    assert_right(ntk.trace(method="exact"), right.trace, 3e-4)
    assert_right(ntk.frobenius_norm(method="exact"), right.frobenius_norm, 3e-4)
