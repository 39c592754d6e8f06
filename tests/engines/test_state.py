"""The state as a function of parameters and inputs, cut off from the model's graph or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ntkscope.engines.torch import StateFunction


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def _model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def test_the_state_is_that_of_the_inputs_that_a_call_is_given() -> None:
    model, x, other = _model(), _random(5, 4), _random(3, 4)
    function = StateFunction(model, x)
    torch.testing.assert_close(function(function.parameters), model(x))
    torch.testing.assert_close(function(function.parameters, other), model(other))


def test_gradients_flow_to_the_parameters_and_inputs_of_a_call() -> None:
    function, x = StateFunction(_model(), _random(5, 4)), _random(3, 4).requires_grad_()
    values = {name: value.clone().requires_grad_() for name, value in function.parameters.items()}
    gradients = torch.autograd.grad(function(values, x).sum(), [*values.values(), x])
    assert all(bool(gradient.any()) for gradient in gradients)


def test_parameters_and_inputs_are_cut_off_by_default() -> None:
    model, x = _model(), _random(5, 4).requires_grad_()
    function = StateFunction(model, x)
    assert not function(function.parameters).requires_grad
    before = function.state.clone()
    with torch.no_grad():
        model[0].weight.zero_()
        x.zero_()
    assert torch.equal(function(function.parameters), before)


def test_they_stay_part_of_their_graph_where_that_is_wished() -> None:
    model, source = _model(), _random(5, 4).requires_grad_()
    function = StateFunction(model, 2 * source, detach=False)
    wanted = [*model.parameters(), source]
    found = torch.autograd.grad(function(function.parameters).square().sum(), wanted)
    expected = torch.autograd.grad(model(2 * source).square().sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not function.state.requires_grad
