"""Runs end well: exact where that is cheaper, with what is known at Ctrl-C, with nothing half-done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ntkscope import NTK, Estimate, estimators
from truth.reference import dense
from truth.verdict import assert_right


class Interrupted:
    """A symmetric operator at which Ctrl-C is pressed after so many products."""

    def __init__(self, matrix: NDArray[np.float64], products: int) -> None:
        self.matrix, self.left, self.shape, self.dtype = matrix, products, matrix.shape, matrix.dtype

    def __matmul__(self, block: Any) -> Any:
        self.left -= block.shape[1]
        if self.left < 0:
            raise KeyboardInterrupt
        return self.matrix @ block


def _kept(measure: Callable[[], Estimate]) -> Estimate:
    """What is known at Ctrl-C; pytest itself would end with an interrupt that comes through."""
    try:
        return measure()
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C lost the estimate that was known")


def _matrix(n: int = 60) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, n))
    return rows @ rows.T


@pytest.mark.parametrize("metric", ["trace", "frobenius_norm", "effective_rank"])
@pytest.mark.parametrize("method", ["sketch", "hutch++", "nystrom"])
def test_interrupted_in_the_exact_stage(metric: str, method: str) -> None:
    """The tolerance is missed at half of the exact cost; the products of the other half are interrupted."""
    matrix = _matrix()
    right = {"trace": np.trace(matrix), "frobenius_norm": np.linalg.norm(matrix)}.get(
        metric, np.trace(matrix) ** 2 / np.linalg.norm(matrix) ** 2
    )
    function = getattr(estimators, metric)
    estimate = _kept(lambda: function(Interrupted(matrix, 70), method=method, rtol=1e-9))
    assert estimate.converged is False
    assert "interrupted" in estimate.note
    assert_right(estimate, float(right), 1e-6)


def _ntk() -> tuple[NTK, float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    x = torch.randn(12, 6, dtype=torch.double)
    return NTK(model, x), dense(model, lambda: model(x)).trace


@pytest.mark.parametrize("method", ["per-sample", "per-sample-forward"])
@pytest.mark.parametrize("rtol", [1e-4, 1e-6])
def test_a_tolerance_that_costs_more_than_exact(method: str, rtol: float) -> None:
    """Ten one-hot probes are exact: a tolerance takes no more than some more than these."""
    ntk, right = _ntk()
    estimate = ntk.trace(method=method, rtol=rtol, max_products=400)
    assert estimate.cost.vjps + estimate.cost.jvps <= 30
    assert_right(estimate, right)


def test_interrupted_by_its_progress() -> None:
    """Ctrl-C within a look at the progress: the next measurement is right."""
    ntk, right = _ntk()
    calls = 0

    def progress(*state: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    estimate = _kept(lambda: ntk.trace(method="hutch++", rtol=1e-9, progress=progress))
    assert estimate.converged is False
    assert_right(estimate, right, 1e-6)
    assert_right(ntk.trace(method="exact"), right)


class Stops(nn.Module):
    """Ctrl-C is pressed inside of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.countdown = nn.Linear(4, 3), [-1]

    def __deepcopy__(self, memo: Any) -> Stops:
        twin = Stops().double()
        twin.load_state_dict(self.state_dict())
        twin.countdown = self.countdown
        return twin

    def forward(self, x: Tensor) -> Tensor:
        self.countdown[0] -= 1
        if self.countdown[0] == 0:
            raise KeyboardInterrupt
        return torch.tanh(self.layer(x))


@pytest.mark.parametrize("call", range(1, 8))
def test_interrupted_inside_of_a_forward_pass(call: int) -> None:
    """At whichever forward pass: afterwards numbers are right, and the model is as it was."""
    torch.manual_seed(0)
    model, x = Stops().double(), torch.randn(5, 4, dtype=torch.double)
    right = dense(model, lambda: model(x))
    before = [p.clone() for p in model.parameters()]
    ntk = NTK(model, x)
    model.countdown[0] = call
    for verb in (ntk.trace, ntk.frobenius_norm):
        try:
            verb()
        except KeyboardInterrupt:
            break
    model.countdown[0] = -1
    assert_right(ntk.trace(method="exact"), right.trace)
    assert_right(ntk.frobenius_norm(method="exact"), right.frobenius_norm)
    assert_right(ntk.trace(method="hutch++", products=9), right.trace)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.requires_grad
