"""The written-out reverse pass: against autograd and dense references, and what it is taken for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.graph.groups import runs_of
from ntkscope.engines.torch.reverse.autograd import AutogradReverse
from ntkscope.engines.torch.reverse.written import pointwise, program
from ntkscope.engines.torch.reverse.written.run import ProgramReverse
from ntkscope.engines.torch.samples.derived import derived_weights
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.linearization import Gradient, Linearization
from reference import dense
from zoo import BY_NAME, INDEPENDENT, Case, Function, each


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def _structure(name: str) -> SampleJacobian:
    return BY_NAME[name].shared().engine.samples().jacobian


def _programmed(structure: SampleJacobian) -> program.Program:
    found = program.Program.of(structure.graph, runs_of(structure.groups))
    assert found is not None
    return found


def _is_written(structure: SampleJacobian) -> bool:
    return "the reverse pass is written out" in structure.describe()


# What it is taken for.


@pytest.mark.parametrize(
    "name", ["mlp", "gru", "gru-last-step", "lstm-batch-first", "rnn-tanh-two-layers-both-ways", "gru-cell",
             "lstm-classifier", "layer-used-twice", "tied-embedding", "dropout-in-eval"]
)  # fmt: skip
def test_models_of_linear_maps_and_gates_have_a_program(name: str) -> None:
    assert _is_written(_structure(name))


@pytest.mark.parametrize("name", ["transformer", "layer-norm", "conv-used-twice", "prelu", "max-pool"])
def test_what_only_autograd_knows_has_none(name: str) -> None:
    assert not _is_written(_structure(name))


@pytest.mark.parametrize(("name", "expected"), [("gru", 5), ("lstm-batch-first", 11), ("mlp", 2)])
def test_a_step_of_a_recurrence_is_a_few_fused_operations(name: str, expected: int) -> None:
    # Of an LSTM: the sum that is split into gates (not of the first step, whose hidden part is constant),
    # the cell's state, which two operations use, and the hidden state.
    assert len(_programmed(_structure(name)).fused) == expected


def test_early_outputs_are_pulled_back_through_earlier_steps_alone() -> None:
    structure = _structure("gru")
    found = _programmed(structure)
    hidden = [n for n, use in enumerate(structure.graph.uses) if "weight_hh_l0" in str(use.parameters)]
    inputs = [n for n, use in enumerate(structure.graph.uses) if "weight_ih_l0" in str(use.parameters)]
    for number, piece in enumerate(structure.graph.pieces):
        reach = found.reach((found.pieces[number],))
        step = int(piece.index[0]) // 4
        assert [use in reach.uses for use in hidden] == [step >= earlier for earlier in range(5)]
        # Of the inputs' gates, all of which one operation makes, the first steps alone.
        assert reach.parts == {inputs[0]: range(step + 1)}


# Against autograd.


def _both(structure: SampleJacobian) -> tuple[Linearization, Linearization]:
    function, graph = structure.function, structure.graph
    leaves = structure.axes.split(function.inputs, range(structure.batch))
    derived = derived_weights(graph, function.parameters)
    values = graph.weights(function.parameters)
    ways = (
        ProgramReverse(_programmed(structure), values, leaves),
        AutogradReverse(graph, values, leaves, function.device),
    )
    first, second = (Linearization(graph, structure.groups, way, derived) for way in ways)
    torch.testing.assert_close(first.state, second.state, rtol=1e-12, atol=1e-12)
    return first, second


def _same(found: list[Gradient], expected: list[Gradient]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.group == other.group
        ours, theirs = one.factor, other.factor
        torch.testing.assert_close(ours.rows(), theirs.rows(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.squared_norms(), theirs.squared_norms(), rtol=1e-9, atol=1e-12)


@each([case for case in INDEPENDENT if _is_written(case.shared().engine.samples().jacobian)])
def test_program_and_autograd_agree(case: Case) -> None:
    structure = case.shared().engine.samples().jacobian
    ours, theirs = _both(structure)
    for probes in (1, 3):
        z = _random(probes, *ours.state.shape)
        before = z.clone()
        _same(ours.pull(z), theirs.pull(z))
        assert z.equal(before)
    pieces = [(number, piece.entries[:2]) for number, piece in enumerate(structure.graph.pieces)]
    for some in ([piece] for piece in pieces):
        _same(ours.pull_pieces(some), theirs.pull_pieces(some))
    _same(ours.pull_pieces(pieces), theirs.pull_pieces(pieces))


# Operations, each between two layers, against dense references.


def _gated(y: Tensor) -> Tensor:
    keep, new, gate = y.chunk(3, -1)
    return torch.tanh(keep * torch.sigmoid(gate)) + new


def _unequal(y: Tensor) -> Tensor:
    long, short = y.split([4, 2], -1)
    return torch.cat([long[..., :2] * short, long.sin(), short], -1)


def _compared(y: Tensor) -> Tensor:
    large = y > 0.1
    return torch.where(large, y, 0.1 * y) + torch.where(large, y.exp(), y.square()).sum(-1, keepdim=True)


#: Functions of (B, 4, 6).
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gates": _gated,
    "gates-of-which-one-is-unused": lambda y: y.chunk(3, -1)[0] * y.chunk(3, -1)[2],
    "unequal-parts": _unequal,
    "comparison-used-twice": _compared,
    "turned-and-flattened": lambda y: y.transpose(1, 2).reshape(len(y), -1),
    "turned-there-and-back": lambda y: y.permute(0, 2, 1).contiguous().mT.flatten(1),
    "joined-twice": lambda y: torch.cat([y, y.relu(), y], -1),
    "stacked": lambda y: torch.stack([y, y.tanh()], -1).flatten(2),
    "joined-views": lambda y: torch.cat([y.unsqueeze(1), y.tanh().unsqueeze(1)], 1).flatten(1, 2),
    "steps-some-unused": lambda y: y.unbind(1)[1] * y.unbind(1)[3].sigmoid(),
    "last-of-a-join": lambda y: torch.stack([y.tanh(), y.tanh().sin()], 1)[:, -1],
    "slices": lambda y: y[:, 1:, ::2] + y[:, :-1, 1::2],
    "narrowed": lambda y: y.narrow(-1, 2, 3).squeeze(1),
    "summed": lambda y: y.sum(-1),
    "summed-and-kept": lambda y: y - y.mean((1, 2), keepdim=True),
    "summed-to-a-number": lambda y: y * y.sum((1, 2))[:, None, None],
    "flipped": lambda y: y.flip(-1, 1) + y,
    "expanded": lambda y: y[:, :1].expand(-1, 3, -1).tanh(),
    "broadcast-gate": lambda y: y * y[..., :1].sigmoid() + y[:, :1].tanh(),
    "powers": lambda y: (1 + y**2).rsqrt() * y / (2 + y.cos()),
    "clamped": lambda y: y.clamp(-0.5, 0.5) + nn.functional.gelu(y) + nn.functional.silu(-y),
    "through-detach": lambda y: y * y.detach().exp() + y.detach(),
    "no-slope": lambda y: y * 0.0 + y.sign() + y[:, :1].tanh(),
    "matmul-by-a-constant": lambda y: y @ torch.linspace(-1, 1, 30, dtype=y.dtype).reshape(6, 5),
    "a-chain": lambda y: y.sin().cos().tanh().exp().log1p().sigmoid(),
    "residual": lambda y: y + y.tanh() + (y + y.relu()).sin(),
    "twice-the-same-input": lambda y: torch.mul(y, y) + torch.sub(y, y),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_between_layers(operation: Callable[[Tensor], Tensor]) -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        middle = operation(model.first(x).unflatten(1, (4, 6)))
        return torch.tanh(model.last(middle.flatten(1)))

    with torch.random.fork_rng():
        torch.manual_seed(2)
        width = operation(torch.zeros(1, 4, 6)).numel()
        model = Function(run, first=nn.Linear(5, 24), last=nn.Linear(width, 3)).double()
    x = _random(3, 5)
    ntk, expected = NTK(model, x), dense(model, x)
    structure = ntk.engine.samples().jacobian
    assert _is_written(structure)
    torch.testing.assert_close(ntk.to_dense(), expected.kernel, rtol=1e-9, atol=1e-12)
    assert ntk.trace("exact").value == pytest.approx(expected.trace, rel=1e-9)
    ours, theirs = _both(structure)
    z = _random(2, *ours.state.shape)
    _same(ours.pull(z), theirs.pull(z))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_as_the_state(operation: Callable[[Tensor], Tensor]) -> None:
    model = Function(lambda m, x: operation(m.first(x).unflatten(1, (4, 6))), first=nn.Linear(5, 24)).double()
    x = _random(2, 5)
    ntk, expected = NTK(model, x), dense(model, x)
    assert _is_written(ntk.engine.samples().jacobian)
    assert ntk.trace("exact").value == pytest.approx(expected.trace, rel=1e-9)
    torch.testing.assert_close(ntk.to_dense(), expected.kernel, rtol=1e-9, atol=1e-12)


class _TwoLayers(nn.Module):
    """A recurrence on a recurrence: the second one's gates are made of the first one's steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.GRUCell(3, 4), nn.LSTMCell(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.new_zeros(len(x), 4), (x.new_zeros(len(x), 5), x.new_zeros(len(x), 5))
        states = []
        for step in range(x.shape[1]):
            low = self.lower(x[:, step], low)
            high = self.upper(low, high)
            states += [low, high[0]]
        return torch.cat(states, 1)


@pytest.mark.parametrize(
    "model", [_TwoLayers(), nn.Sequential(nn.GRU(3, 4, 2, batch_first=True))], ids=["cells", "layers"]
)
def test_recurrences_on_recurrences(model: nn.Module) -> None:
    model, x = model.double(), _random(3, 4, 3)
    outputs = (lambda y: y[0]) if isinstance(model, nn.Sequential) else None
    ntk, expected = NTK(model, x, outputs=outputs), dense(model, x, outputs)
    assert _is_written(ntk.engine.samples().jacobian)
    assert ntk.trace("exact").value == pytest.approx(expected.trace, rel=1e-9)
    torch.testing.assert_close(ntk.to_dense(), expected.kernel, rtol=1e-9, atol=1e-12)


# Where it does not hold.


def test_a_program_that_disagrees_with_the_model_is_left_for_autograd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = pointwise.IdenticalPointwise.slopes

    def wrong(*args: Any) -> Any:
        found = right(*args).items()
        return {node: tuple(None if s is None else s * 1.01 for s in slopes) for node, slopes in found}

    monkeypatch.setattr(pointwise.IdenticalPointwise, "slopes", wrong)
    ntk, expected = BY_NAME["mlp"].ntk(), BY_NAME["mlp"].dense()
    assert "the written-out one fails: the gradients of single" in ntk.engine.samples().jacobian.describe()
    assert ntk.trace("exact").value == pytest.approx(expected.trace, rel=1e-9)


def test_a_program_that_fails_is_left_for_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise IndexError

    monkeypatch.setattr(pointwise.IdenticalPointwise, "slopes", fails)
    ntk, expected = BY_NAME["gru"].ntk(), BY_NAME["gru"].dense()
    assert (
        "the written-out one fails: the model cannot run sample by sample (IndexError)"
        in ntk.engine.samples().jacobian.describe()
    )
    assert ntk.trace("exact").value == pytest.approx(expected.trace, rel=1e-9)
