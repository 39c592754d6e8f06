"""Every parameter of well-known blocks has a rule, and every exact number is that of autograd row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from architectures import ARCHITECTURES
from inside import structure
from ntkscope import NTK


def _double(inputs: Any) -> Any:
    if isinstance(inputs, tuple):
        return tuple(_double(part) for part in inputs)
    return inputs.double() if inputs.is_floating_point() else inputs


def _make(name: str, seed: int) -> tuple[nn.Module, Any]:
    build, draw = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        inputs = _double(draw())
        torch.manual_seed(seed)
        return build().double(), inputs


def _rows(model: nn.Module, inputs: Any) -> Tensor:
    """J by autograd, an output at a time."""
    state = (model(*inputs) if isinstance(inputs, tuple) else model(inputs)).flatten()
    parameters = list(model.parameters())
    rows = [
        torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        for one in state
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_number_is_that_of_autograd(name: str) -> None:
    (model, inputs), (later, _) = _make(name, 0), _make(name, 2)
    ntk, other = NTK(model, inputs), NTK(later, inputs)
    assert structure(ntk).graph.general == ()
    jacobian, second = _rows(model, inputs), _rows(later, inputs)
    kernel, kernel_2 = jacobian @ jacobian.T, second @ second.T

    def near(value: Tensor | float) -> Any:
        return pytest.approx(float(value), rel=1e-8)

    norm, norm_2 = kernel.norm(), kernel_2.norm()
    assert ntk.trace("exact").value == near(kernel.trace())
    assert ntk.frobenius_norm("exact").value == near(norm)
    assert ntk.effective_rank("exact").value == near((kernel.trace() / norm) ** 2)
    assert ntk.alignment(other, method="exact").value == near((kernel * kernel_2).sum() / norm / norm_2)
    torch.testing.assert_close(ntk.to_dense(), kernel, rtol=1e-8, atol=1e-9 * float(norm))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_probes_agree(name: str) -> None:
    model, inputs = _make(name, 0)
    ntk, jacobian = NTK(model, inputs), _rows(*_make(name, 0))
    trace = ntk.trace("per-sample", products=600)
    assert trace.value == pytest.approx(float(jacobian.square().sum()), rel=0.1)
    norm = ntk.frobenius_norm("per-sample", products=60)
    assert norm.value == pytest.approx(float((jacobian @ jacobian.T).norm()), rel=0.2)
