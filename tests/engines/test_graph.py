"""The opened graph: uses, taps, pieces, and the reasons why a parameter takes the general way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.opened import Graph, trace
from ntkscope.engines.torch.graph.pieces import jobs
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from zoo import BY_NAME, INDEPENDENT, Case, Function, each


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _graph(run: Any, x: Tensor, **parts: Any) -> Graph:
    """The graph of a function of its parts, traced on one sample."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Function(run, **parts).double()
    return NTK(model, x).engine.samples().jacobian.graph


def _structure(name: str) -> SampleJacobian:
    return BY_NAME[name].shared().engine.samples().jacobian


# Uses.


def test_every_use_is_found_with_its_parameters_and_shape() -> None:
    graph = _structure("mlp").graph
    assert [use.parameters for use in graph.uses] == [
        {"weight": f"{layer}.weight", "bias": f"{layer}.bias"} for layer in (0, 2, 4)
    ]
    assert [use.tap_shape for use in graph.uses] == [(1, 7), (1, 6), (1, 3)]
    assert graph.names == tuple(f"{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias"))
    assert graph.general == ()


@pytest.mark.parametrize(
    ("name", "uses", "parameters"),
    [
        ("layer-used-twice", 2, {"layer.weight", "layer.bias"}),
        ("conv-used-twice", 2, {"layer.weight", "layer.bias"}),
        ("tied-embedding", 3, {"embedding.weight", "middle.weight", "middle.bias", "output.bias"}),
        ("bias-shared-by-two-layers", 2, {"first", "second", "bias"}),
        ("frozen", 3, {"0.bias", "2.weight", "2.bias", "4.weight"}),
        ("unused-parameter", 1, {"used.weight", "used.bias"}),
    ],
)
def test_uses_of_shared_and_frozen_parameters(name: str, uses: int, parameters: set[str]) -> None:
    graph = _structure(name).graph
    assert len(graph.uses) == uses
    assert {block for use in graph.uses for block in use.parameters.values()} == parameters


def test_a_recurrence_uses_its_weights_at_every_step() -> None:
    graph = _structure("gru").graph
    hidden = [use for use in graph.uses if "weight_hh_l0" in str(use.parameters)]
    # Five steps, and the inputs of all steps in one product.
    assert len(hidden) == 5
    assert len(graph.uses) == 6


def test_a_split_parameter_is_used_in_blocks() -> None:
    graph = _graph(
        lambda m, x: torch.cat([F.linear(x, part) for part in m.weight.chunk(2)], 1),
        _random(4, 3),
        weight=torch.randn(6, 3),
    )
    assert graph.general == ()
    assert set(graph.blocks) == {"weight[0]", "weight[1]"}
    assert set(graph.blocks.values()) == {"weight"}
    assert [use.constants["weight"].shape for use in graph.uses] == [(3, 3), (3, 3)]


def test_the_same_view_taken_twice_is_one() -> None:
    graph = _graph(
        lambda m, x: torch.tanh(x @ m.weight.T) @ m.square.T + x @ m.weight.T,
        _random(4, 3),
        weight=torch.randn(2, 3),
        square=torch.randn(2, 2),
    )
    assert graph.general == ()
    assert len(graph.uses) == 3


@each(["gru", "transformer", "conv2d-groups-stride-dilation", "tied-embedding", "frozen", "class-token"])
def test_taps_of_zero_leave_the_state_and_others_move_it(case: Case) -> None:
    structure = case.shared().engine.samples().jacobian
    graph, function = structure.graph, structure.function
    parameters = [function.parameters[name] for name in graph.names]
    sample = [leaf[0] for leaf in structure.axes.split(function.inputs, range(1))]
    taps = [torch.zeros(use.tap_shape, dtype=torch.float64) for use in graph.uses]
    with torch.no_grad():
        state = graph.module(*parameters, *sample, *taps)[0]
        expected = structure.axes.to_samples(function.state.reshape(1, -1))[0, 0]
        torch.testing.assert_close(state.reshape(-1), expected.reshape(-1))
        # The first use lies before the state.
        moved = graph.module(*parameters, *sample, taps[0] + 1, *taps[1:])[0]
    assert not torch.allclose(moved, state)


# Reasons.


@each([case for case in INDEPENDENT if case.general])
def test_every_general_parameter_has_a_reason(case: Case) -> None:
    graph = case.shared().engine.samples().jacobian.graph
    assert set(graph.why_general) == set(graph.general) == case.general
    assert all(reason.startswith("used ") for reason in graph.why_general.values())
    tapped = {graph.blocks[block] for use in graph.uses for block in use.parameters.values()}
    assert not tapped & set(graph.general)


@pytest.mark.parametrize(
    ("name", "parameter", "reason"),
    [
        ("instance-norm", "1.weight", "used by "),
    ],
)
def test_reasons(name: str, parameter: str, reason: str) -> None:
    assert reason in _structure(name).graph.why_general[parameter]


# Pieces.


@each(INDEPENDENT)
def test_pieces_hold_every_entry_of_the_state_once(case: Case) -> None:
    structure = case.shared().engine.samples().jacobian
    index = torch.cat([piece.index for piece in structure.graph.pieces])
    assert index.sort().values.equal(torch.arange(structure.outputs))
    assert all(len(piece.index) == len(piece.entries) for piece in structure.graph.pieces)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [("gru", 5), ("gru-last-step", 1), ("mlp", 1), ("lstm-batch-first", 4), ("rnn-cell-tanh", 4),
     ("gru-hidden", 2)],
)  # fmt: skip
def test_a_recurrence_comes_in_steps(name: str, pieces: int) -> None:
    assert len(_structure(name).graph.pieces) == pieces


@each(["gru", "lstm-batch-first", "rnn-tanh-two-layers-both-ways", "gru-cell", "class-token", "max-pool"])
def test_pieces_have_the_gradients_of_the_state(case: Case) -> None:
    structure, jacobian = case.shared().engine.samples().jacobian, case.dense().jacobian
    linear = structure.linearize(range(structure.batch))
    rows = (jacobian[structure.axes.state_index()] ** 2).sum(2)
    for number, piece in enumerate(structure.graph.pieces):
        for entry, output in zip(piece.entries, piece.index, strict=True):
            gradients = linear.pull_pieces([(number, entry.reshape(1))])
            found = sum(gradient.factor.squared_norms()[0] for gradient in gradients)
            torch.testing.assert_close(found, rows[:, output], rtol=1e-9, atol=1e-12)


STATES: dict[str, tuple[Any, int]] = {
    "stacked-twice": (lambda y, z: torch.stack([y, y], 1), 1),
    "cut-and-turned": (lambda y, z: torch.cat([y[:, 1:], z], 1).flip(1).T.T, 2),
    "empty-part": (lambda y, z: torch.cat([torch.sin(y[:, :0]), z], 1), 1),
    "only-some-entries": (lambda y, z: y[:, ::2], 1),
    "split-and-joined": (lambda y, z: torch.cat([*y.split(1, 1)[::-1], z], 1), 2),
    "swapped-axes": (lambda y, z: torch.stack([y, z], 2).transpose(1, 2).flatten(1), 2),
    "a-part-that-nothing-reaches": (lambda y, z: torch.cat([y, torch.ones_like(y)], 1), 2),
    "a-number": (lambda y, z: y.sum(1), 1),
}


@pytest.mark.parametrize(("state", "pieces"), STATES.values(), ids=STATES)
def test_states_put_together_by_moves(state: Any, pieces: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Function(
            lambda m, x: state(torch.tanh(m.first(x)), torch.tanh(m.second(x))),
            first=nn.Linear(3, 3),
            second=nn.Linear(3, 3),
        ).double()
    ntk = NTK(model, _random(4, 3))
    structure = ntk.engine.samples().jacobian
    assert len(structure.graph.pieces) == pieces
    kernel = ntk.engine.jacobian.dense() @ ntk.engine.jacobian.dense().T
    diagonal = kernel.diagonal()[structure.axes.state_index()]
    torch.testing.assert_close(structure.frobenius_squared(), diagonal.sum(1))
    torch.testing.assert_close(ntk.to_dense(), kernel)


@pytest.mark.parametrize("probes", [1, 2, 3, 4, 7, 100])
def test_jobs_hold_every_entry_once_and_no_more_than_so_many(probes: int) -> None:
    pieces = _structure("gru").graph.pieces
    found = list(jobs(pieces, probes))
    assert all(sum(len(entries) for _, entries in job) <= probes for job in found)
    listed = sorted((number, int(entry)) for job in found for number, part in job for entry in part)
    assert listed == sorted((n, int(entry)) for n, piece in enumerate(pieces) for entry in piece.entries)
    if probes >= 20:
        assert len(found) == 1


# What cannot be traced.


def test_a_failure_while_tracing_says_what_and_why() -> None:
    def fail(parameters: dict[str, Tensor], sample: list[Tensor]) -> Tensor:
        raise KeyError("the model's own error")

    with pytest.raises(StructureError, match=r"cannot be traced \(KeyError: .*the model's own error"):
        trace(fail, {"w": torch.ones(2)}, [torch.ones(2)])


def test_what_is_computed_without_gradient_carries_none() -> None:
    def part(parameters: dict[str, Tensor], sample: list[Tensor]) -> Tensor:
        with torch.no_grad():
            gate = F.linear(sample[0], parameters["gate"])
        return gate * F.linear(sample[0], parameters["weight"])

    graph = trace(part, {"gate": torch.ones(2, 2), "weight": torch.ones(2, 2)}, [torch.ones(1, 2)])
    values = [torch.ones(2, 2, requires_grad=True) for _ in range(2)]
    taps = [torch.zeros(use.tap_shape) for use in graph.uses]
    state = graph.module(*values, torch.ones(1, 2), *taps)[0]
    gradients = torch.autograd.grad(state.sum(), values, allow_unused=True)
    assert gradients[0] is None
    assert gradients[1] is not None
