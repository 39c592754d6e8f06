"""``loss=`` against the generalised Gauss-Newton operator of curvlinops, where that is installed.

``tests/engines/test_losses.py`` has the same against dense matrices by plain torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from ntkscope import NTK


@pytest.fixture(scope="module")
def peer() -> Any:
    # What it imports warns of its own past.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "curvlinops", reason="curvlinops is not installed; pip install 'ntkscope[peers]'"
        )


def _mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 10)]
    return nn.Sequential(*layers), torch.randn(40, 20)


def _cnn() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.GELU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 10)), torch.randn(12, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("make", [_mlp, _cnn])
def test_trace_and_largest_eigenvalue(
    peer: Any, make: Callable[[], tuple[nn.Module, Tensor]], loss: str, reduction: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    model, inputs = model.to(dtype), inputs.to(dtype)
    if loss == "mse":
        criterion: nn.Module = nn.MSELoss(reduction=reduction)
        targets = torch.randn(len(inputs), 10, dtype=dtype)
    else:
        criterion = nn.CrossEntropyLoss(reduction=reduction)
        targets = torch.arange(len(inputs)) % 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = peer.GGNLinearOperator(model, criterion, list(model.parameters()), [(inputs, targets)])
        size = operator.shape[0]
        # A few columns at a time: all of them together take gigabytes.
        columns = torch.arange(size).split(256)
        trace = sum(float((operator @ torch.eye(size, dtype=dtype)[:, c])[c].trace()) for c in columns)
        (largest,) = eigsh(operator.to_scipy(), k=1, which="LA", return_eigenvectors=False, tol=1e-8)
    ntk = NTK(model, inputs, loss=loss, reduction=reduction)
    assert ntk.trace("exact").value == pytest.approx(trace, rel=1e-5)
    assert ntk.operator_norm("krylov", rtol=1e-6).value == pytest.approx(float(largest), rel=1e-5)
    assert ntk.operator_norm("exact").value == pytest.approx(float(largest), rel=1e-5)
