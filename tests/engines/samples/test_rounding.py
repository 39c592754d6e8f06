"""Measured rounding is of the size of the dtype in which an operation runs, and leaves what is exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inside import structure
from ntkscope import NTK
from ntkscope.engines.torch.samples.rounding import is_low, linearize_with_noise, lowest_epsilon
from zoo import Function


def _noise(dtype: torch.dtype) -> float:
    """How far the states of a model are moved, relative to the largest."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = (
            nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype),
            torch.randn(30, 8).to(dtype),
        )
    jacobian = structure(NTK(model, x))
    function = jacobian.function
    leaves = jacobian.axes.split(function.inputs, range(30))
    noisy = linearize_with_noise(
        jacobian.graph, jacobian.groups, function.parameters, leaves, function.device
    )
    apart = (noisy.state.detach().flatten(1) - function.state).double().abs().max()
    return float(apart / function.state.double().abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_noise_is_some_units_of_the_last_digit(dtype: torch.dtype) -> None:
    epsilon = torch.finfo(dtype).eps
    assert 0.5 * epsilon < _noise(dtype) < 64 * epsilon


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    _noise(torch.float64)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_whole_numbers_are_exact() -> None:
    model = Function(lambda m, x: m.scale * (x.round() + 1), scale=torch.ones(1)).double()
    x = torch.arange(12, dtype=torch.float64).reshape(6, 2)
    jacobian = structure(NTK(model, x))
    function = jacobian.function
    noisy = linearize_with_noise(jacobian.graph, jacobian.groups, function.parameters, [x], function.device)
    assert torch.equal(noisy.state.reshape(6, 2), function.state)


def test_the_lowest_precision_of_a_graph() -> None:
    model = Function(lambda m, x: m.linear(x).bfloat16().float(), linear=nn.Linear(3, 2))
    graph = structure(NTK(model, torch.randn(4, 3))).graph
    epsilon = lowest_epsilon(graph, torch.float32)
    assert epsilon == torch.finfo(torch.bfloat16).eps
    assert is_low(epsilon)
    assert not is_low(torch.finfo(torch.float32).eps)
