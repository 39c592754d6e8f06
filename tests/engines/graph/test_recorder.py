"""A recording is the function, or it is refused: nothing is taken for a constant that is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.recorder import record


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _replayed(function: Callable[[Tensor], Tensor]) -> Tensor:
    """How far the graph of one argument and the function lie apart at another, with their gradients."""
    recording = record(function, [_random(0, 4, 3).requires_grad_()])
    module = torch.fx.GraphModule(recording.constants, recording.graph)
    apart = []
    for run in (module, function):
        x = _random(1, 4, 3).requires_grad_()
        y = run(x)
        (gradient,) = torch.autograd.grad(y.sum(), x, materialize_grads=True) if y.requires_grad else (0 * x,)
        apart.append(torch.cat([y.reshape(-1), gradient.reshape(-1)]))
    return (apart[0] - apart[1]).detach().abs().max()


def _inner_gradient(x: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    y = torch.tanh(leaf * x).sum()
    return torch.autograd.grad(y, leaf, create_graph=True)[0]


def _force(x: Tensor) -> Tensor:
    """Through ``linear``, whose parts autograd keeps."""
    position = x.detach().requires_grad_()
    energy = torch.sin(nn.functional.linear(position, x[:3])).pow(2).sum()
    return torch.autograd.grad(energy, position, create_graph=True)[0]


def _second_derivative(x: Tensor) -> Tensor:
    first = torch.autograd.grad(torch.sin(x).pow(3).sum(), x, create_graph=True)[0]
    return torch.autograd.grad(first.sum(), x, create_graph=True)[0]


def _inner_gradient_cut(x: Tensor) -> Tensor:
    return x * torch.autograd.grad(torch.exp(x).sum(), x)[0]


def _without_history(x: Tensor) -> Tensor:
    return x * torch.tanh(x).data


def _by_a_view_of_numpy(x: Tensor) -> Tensor:
    return x * torch.from_numpy(torch.tanh(x).detach().numpy())


def _unread_draw(x: Tensor) -> Tensor:
    torch.rand(3)
    torch.empty(3).normal_(generator=torch.Generator())
    return torch.tanh(x)


def _profiled(x: Tensor) -> Tensor:
    with record_function("a mark"):
        return torch.tanh(x)


def _unused_dropout(x: Tensor) -> Tensor:
    y = nn.functional.dropout(x, 0.0, training=True)
    return nn.functional.dropout(y, 0.5, training=False) * 2


HELD = [
    _inner_gradient, _force, _second_derivative, _inner_gradient_cut, _without_history, _by_a_view_of_numpy,
    _unread_draw, _profiled, _unused_dropout,
]  # fmt: skip


@pytest.mark.parametrize("function", HELD)
def test_the_graph_is_the_function(function: Callable[[Tensor], Tensor]) -> None:
    assert float(_replayed(function)) < 1e-13


def _drawn(x: Tensor) -> Tensor:
    return x * torch.rand(3, dtype=x.dtype)


def _drawn_from_a_generator(x: Tensor) -> Tensor:
    return x + torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=x.dtype)


def _drawn_in_place(x: Tensor) -> Tensor:
    return x + torch.empty_like(x).uniform_(generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("function", [_drawn, _drawn_from_a_generator, _drawn_in_place])
def test_numbers_that_are_drawn_and_read_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(StructureError, match="draws random numbers"):
        record(function, [_random(0, 3)])


def test_a_tensor_with_a_history_from_elsewhere_is_refused() -> None:
    kept = torch.tanh(_random(0, 3).requires_grad_())
    with pytest.raises(StructureError, match="a history of its own"):
        record(lambda x: x * kept, [_random(1, 3)])


def test_memory_that_is_read_past_the_record_is_refused() -> None:
    def run(x: Tensor) -> Tensor:
        return x[:2] * torch.from_numpy(torch.tanh(x).detach().numpy()[1:])

    with pytest.raises(StructureError, match="by a path that is not recorded"):
        record(run, [_random(1, 3)])


def test_memory_that_is_written_past_the_record_is_refused() -> None:
    def run(x: Tensor) -> Tensor:
        y = torch.tanh(x)
        y.numpy()[0] = 7.0
        y._version  # noqa: B018
        return nn.functional.batch_norm(y[None], mean, mean, training=True)[0] * mean

    mean = torch.ones(3, dtype=torch.float64)
    with pytest.raises((StructureError, ValueError)):
        record(run, [_random(1, 3)])


def test_two_views_of_one_constant_are_two_constants() -> None:
    table = _random(2, 6)
    first, second = table[:3], table[3:]
    recording = record(lambda x: x * first + second, [_random(1, 3)])
    module = torch.fx.GraphModule(recording.constants, recording.graph)
    x = _random(3, 3)
    torch.testing.assert_close(module(x), x * first + second)


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * gradient * ctx.saved_tensors[0] ** 2


def test_functions_with_their_own_backward_are_named() -> None:
    x = _random(0, 3).requires_grad_()
    assert record(lambda x: torch.tanh(_Cube.apply(x)), [x]).own_backward == ("_Cube",)
    assert record(torch.tanh, [x]).own_backward == ()
    reentrant = record(lambda x: checkpoint(torch.tanh, x, use_reentrant=True), [x])
    assert reentrant.own_backward == ("CheckpointFunction",)
