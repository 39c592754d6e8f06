"""What was traced of a module serves its next kernel, is checked there, and goes with the module."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.samples import jacobian, memo


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of graphs that were traced."""
    calls: list[int] = []
    trace = jacobian.trace

    def counted(*args: object) -> object:
        calls.append(1)
        return trace(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(jacobian, "trace", counted)
    return calls


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2)).double().eval()


def _exact(model: nn.Module, x: Tensor) -> float:
    total = 0.0
    for value in model(x).flatten():
        grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
        total += sum(float(g.square().sum()) for g in grads if g is not None)
    return total


def _trace(model: nn.Module, x: Tensor) -> float:
    return NTK(model, x).trace("exact").value


def test_the_second_kernel_of_a_module_is_not_traced(traced: list[int]) -> None:
    model = _net()
    for x in torch.randn(3, 4, 3, dtype=torch.float64):
        assert _trace(model, x) == pytest.approx(_exact(model, x), rel=1e-12)
        with torch.no_grad():
            model[0].weight.add_(0.3)
    assert len(traced) == 1


@pytest.mark.parametrize("change", ["shape", "buffer", "mode", "frozen", "hook", "layer"])
def test_what_changes_the_structure_is_traced_anew(change: str, traced: list[int]) -> None:
    model, x = _net(), torch.randn(4, 3, dtype=torch.float64)
    _trace(model, x)
    if change == "shape":
        x = torch.randn(6, 3, dtype=torch.float64)
    elif change == "buffer":
        model[2].running_mean.fill_(0.7)
    elif change == "mode":
        model[2] = nn.Tanh()
    elif change == "frozen":
        model[0].weight.requires_grad_(False)
    elif change == "hook":
        model[1].register_forward_hook(lambda module, args, out: 3 * out)
    else:
        assert NTK(model, x, layer="0").trace("exact").value == pytest.approx(_exact(model[0], x), rel=1e-12)
        return
    trainable = [p for p in model.parameters() if p.requires_grad]
    expected = sum(
        float(g.square().sum())
        for value in model(x).flatten()
        for g in torch.autograd.grad(value, trainable, retain_graph=True, allow_unused=True)
        if g is not None
    )
    assert _trace(model, x) == pytest.approx(expected, rel=1e-12)
    assert len(traced) >= 2


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).tanh() if bool((x > 0).all()) else self.two(x).square()


def test_inputs_that_take_another_branch_are_traced_anew() -> None:
    model, x = _Branch().double(), torch.rand(4, 3, dtype=torch.float64)
    for batch in (x, -x, x):
        assert _trace(model, batch) == pytest.approx(_exact(model, batch), rel=1e-12)


def test_nothing_keeps_the_module_alive() -> None:
    model, x = _net(), torch.randn(4, 3, dtype=torch.float64)
    _trace(model, x)
    assert model in memo._TRACED
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_large_constants_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "_MOST_BYTES", 1)
    model = _net()
    _trace(model, torch.randn(4, 3, dtype=torch.float64))
    assert model not in memo._TRACED
