"""A graph that is run node by node gives what FX's own program of it gives."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, fx, nn

from ntkscope.engines.torch.graph.recorder import record
from ntkscope.engines.torch.graph.running import Running

aten = torch.ops.aten


def _cell(x: Tensor, weight: Tensor) -> Tensor:
    first, second = torch.nn.functional.linear(x, weight).chunk(2, dim=-1)
    steps = [torch.sigmoid(first) * second, torch.tanh(second) + torch.ones(3), first.sum(-1, keepdim=True)]
    return torch.cat([*steps, torch.clamp(first, min=-0.5, max=0.5)], dim=-1)


def test_it_gives_what_the_compiled_graph_gives() -> None:
    x, weight = torch.randn(2, 4), torch.randn(6, 4)
    recording = record(_cell, [x, weight])
    compiled = fx.GraphModule(recording.constants, recording.graph)
    run = Running(recording.graph, recording.constants)
    for _ in range(2):
        x, weight = torch.randn(2, 4), torch.randn(6, 4)
        assert torch.equal(run(x, weight), compiled(x, weight))
        assert torch.equal(run(x, weight), _cell(x, weight))


def test_it_runs_under_transformations() -> None:
    weight = torch.randn(6, 4)
    recording = record(_cell, [torch.randn(2, 4), weight])
    run = Running(recording.graph, recording.constants)
    batch = torch.randn(5, 2, 4)
    found = torch.func.vmap(run, in_dims=(0, None))(batch, weight)
    torch.testing.assert_close(found, torch.stack([_cell(x, weight) for x in batch]))
    given = torch.func.grad(lambda w: run(batch[0], w).sum())(weight)
    torch.testing.assert_close(given, torch.func.grad(lambda w: _cell(batch[0], w).sum())(weight))


def test_chosen_results_come_in_their_form_and_need_no_more_than_they_depend_on() -> None:
    calls: list[str] = []

    def counted(x: Tensor) -> Tensor:
        calls.append("ran")
        return x * 2

    graph = fx.Graph()
    x = graph.placeholder("x")
    tap = graph.placeholder("tap")
    doubled = graph.call_function(counted, (x,))
    tapped = graph.call_function(aten.add.Tensor, (doubled, tap))
    other = graph.call_function(aten.neg.default, (x,))
    graph.output((tapped, other))
    value = torch.arange(3.0)
    state, (first, none) = Running(graph, nn.Module(), (tapped, (other, ())), zeros=[tap])(value)
    assert torch.equal(state, 2 * value)
    assert torch.equal(first, -value)
    assert none == ()
    assert Running(graph, nn.Module(), (), zeros=[tap])(value) == ()
    assert calls == ["ran"]
    both = Running(graph, nn.Module())(value, torch.ones(3))
    assert torch.equal(both[0], 2 * value + 1)


def test_named_arguments_that_are_values_and_constants() -> None:
    graph, constants = fx.Graph(), nn.Module()
    constants.register_buffer("shift", torch.tensor([1.0, 2.0]))
    x = graph.placeholder("x")
    shift = graph.get_attr("shift")
    graph.output(graph.call_function(aten.add.Tensor, (x,), {"other": shift, "alpha": 3}))
    assert torch.equal(Running(graph, constants)(torch.zeros(2)), torch.tensor([3.0, 6.0]))
    with pytest.raises(ValueError, match="zip"):
        Running(graph, constants)()


def test_a_value_is_let_go_after_its_last_use() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def make(x: Tensor) -> Tensor:
        y = x + 1
        alive.append(weakref.ref(y))
        return y

    def look(x: Tensor) -> Tensor:
        gc.collect()
        assert [one() is not None for one in alive] == [False, False]
        return x

    graph = fx.Graph()
    node = x = graph.placeholder("x")
    for _ in range(2):
        node = graph.call_function(make, (node,))
    total = graph.call_function(aten.sum.default, (node,))
    graph.output(graph.call_function(look, (total,)))
    assert float(Running(graph, nn.Module())(torch.ones(2))) == 6
    assert x.op == "placeholder"
