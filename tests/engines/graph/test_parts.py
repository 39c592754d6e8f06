"""Writes into parts of tensors, recorded as what the whole is after them."""

from __future__ import annotations

import random as draws
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from agreement import agree, random
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.operators import name_of
from ntkscope.engines.torch.graph.parts import is_root
from ntkscope.engines.torch.graph.recorder import Recording, record
from zoo import Function

# Functions of a tensor of shape (4, 6).


def _rows(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for row in range(4):
        out[row] = x[row].sin() + (out[row - 1] if row else 0)
    return out


def _columns(x: Tensor) -> Tensor:
    out = torch.empty(4, 6, dtype=x.dtype)
    for column in range(6):
        out[:, column] = x[:, column] ** 2
    return out


def _some_rows(x: Tensor) -> Tensor:
    out = x * 2
    out[1:3] = x[:2]
    return out * out


def _written_twice(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:3] = x[1:]
    out[2:] = x[:2] * out[1:3].clone()
    return out


def _taking_turns(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[..., 0::2] = x[..., 1::2].cos()
    out[..., 1::2] = x[..., 0::2].sin()
    return out


def _every_other(x: Tensor) -> Tensor:
    out = x.clone()
    out[::2] = 0
    return out


def _block(x: Tensor) -> Tensor:
    out = x.sin()
    out[1:3, 2:5] *= 3
    return out


def _entry(x: Tensor) -> Tensor:
    out = x.sin()
    out[2, 3] = x[0, 0]
    out[-1, -1] += 1
    return out


def _of_a_view(x: Tensor) -> Tensor:
    y = x.sin()
    y.view(2, 2, 6)[0, 1] = 3 * x[0]
    return y


def _of_a_flat_view(x: Tensor) -> Tensor:
    y = x.sin()
    y.view(-1)[4:9] = x.reshape(-1)[:5]
    return y + 1


def _of_a_transpose(x: Tensor) -> Tensor:
    y = x.sin()
    y.T[2] = x[:, 0]
    y.t()[3:5, 1:2] = 7
    return y


def _read_by_a_view_from_before(x: Tensor) -> Tensor:
    y = x.sin()
    rows, turned = y[1:], y.T
    y.mul_(x)
    y[2] += 1
    return rows.sum(0) @ turned


def _diagonal(x: Tensor) -> Tensor:
    y = x.sin()
    y.diagonal().mul_(2)
    return y


def _masked(x: Tensor) -> Tensor:
    y = x.sin()
    y[:, torch.tensor([True, False, True, False, False, True])] = -1
    y[1:, :3].masked_fill_(x[1:, :3] > 0, 2)
    return y


def _by_index(x: Tensor) -> Tensor:
    y = torch.zeros(4, 9, dtype=x.dtype)
    y[:, torch.tensor([8, 1, 3, 0, 2, 5])] = x
    y[1:].index_add_(1, torch.tensor([0, 2, 2]), x[1:, :3])
    return y


def _in_place_arithmetic(x: Tensor) -> Tensor:
    y = x.abs() + 1
    y[0].mul_(1.5)
    y[:, 1:3].add_(x[:, :2]).clamp_(max=1)
    y[2:].sub_(1)
    return y.sin_()


def _without_gradient(x: Tensor) -> Tensor:
    y = x.sin()
    with torch.no_grad():
        mask = torch.ones(4, 6, dtype=x.dtype)
        mask[1] = 0
        mask[:, 2] = x[:, 0]
    return y * mask


def _several_at_once(x: Tensor) -> Tensor:
    out = torch.zeros(2, 4, 6, dtype=x.dtype)
    out[:] = x
    out[1, :, :3] = x[:, 3:] * out[0, :, 3:].clone()
    return out[1] - out[0]


def _complex(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(x)
    out = torch.zeros(4, 4, dtype=spectrum.dtype)
    out[:, :2] = spectrum[:, :2] * 2j
    return torch.fft.irfft(out, n=6)


def _squeezed(x: Tensor) -> Tensor:
    out = x.unsqueeze(1) + 0
    out.squeeze(1)[:, 2] = x[:, 0]
    return out[:, 0]


WRITES = [
    _rows, _columns, _some_rows, _written_twice, _taking_turns, _every_other, _block, _entry, _of_a_view,
    _of_a_flat_view, _of_a_transpose, _read_by_a_view_from_before, _diagonal, _masked, _by_index,
    _in_place_arithmetic, _without_gradient, _several_at_once, _complex, _squeezed,
]  # fmt: skip


def _check(function: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (4, 6)) -> Recording:
    """Values and gradients, at another tensor than that which was recorded, alone and under vmap."""
    recorded, other = random(*shape), random(3, *shape)
    recording = record(function, [recorded.clone().requires_grad_()])
    module = torch.fx.GraphModule(recording.constants, recording.graph)
    x, y = (other.clone().requires_grad_() for _ in range(2))
    expected = torch.stack([function(row) for row in x])
    found = torch.func.vmap(module)(y)
    torch.testing.assert_close(found, expected)
    z = torch.cos(torch.arange(expected.numel(), dtype=torch.float64)).reshape(expected.shape)
    torch.testing.assert_close(torch.autograd.grad(found, y, z)[0], torch.autograd.grad(expected, x, z)[0])
    return recording


@pytest.mark.parametrize("write", WRITES)
def test_the_graph_computes_what_was_written(write: Callable[[Tensor], Tensor]) -> None:
    _check(write)


def _steps(recording: Recording) -> set[str]:
    return {name_of(node) for node in recording.graph.nodes}


@pytest.mark.parametrize("write", [_rows, _columns, _written_twice, _taking_turns])
def test_slices_that_cover_a_tensor_stand_side_by_side(write: Callable[[Tensor], Tensor]) -> None:
    steps = _steps(_check(write))
    assert "slice_scatter" not in steps
    assert steps & {"cat", "stack"}
    assert "zeros_like" not in steps


@pytest.mark.parametrize("seed", range(30))
def test_writes_and_reads_by_chance(seed: int) -> None:
    def slices(chance: draws.Random, y: Tensor) -> Tensor:
        """A view of a tensor, of up to three steps."""
        for _ in range(chance.randint(1, 3)):
            axis = chance.randrange(y.dim())
            kind = chance.choice(["slice", "select", "turn", "flat", "insert"])
            if kind == "slice":
                start = chance.randrange(y.shape[axis])
                stop = chance.randint(start + 1, y.shape[axis])
                y = y[(slice(None),) * axis + (slice(start, stop, chance.randint(1, 2)),)]
            elif kind == "select" and y.dim() > 1:
                y = y.select(axis, chance.randrange(y.shape[axis]))
            elif kind == "turn":
                y = y.transpose(axis, chance.randrange(y.dim()))
            elif kind == "flat" and y.is_contiguous():
                y = y.view(-1)
            elif kind == "insert":
                y = y.unsqueeze(axis)
        return y

    def run(x: Tensor) -> Tensor:
        chance = draws.Random(seed)
        y = x.sin()
        kept = slices(chance, y)
        for _ in range(4):
            target = slices(chance, y)
            source = slices(chance, y).sum().cos()
            if chance.random() < 0.5:
                target.copy_(source * torch.ones(target.shape, dtype=x.dtype).cumsum(0))
            else:
                target.mul_(source)
        return torch.cat([y.reshape(-1), kept.reshape(-1)])

    _check(run, (4, 2, 3))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(3, 4), True),
        (torch.ones(3, 4).T[1:, ::2], True),
        (torch.ones(3, 1).expand(3, 4), False),
        (torch.ones(9).as_strided((3, 3), (1, 1)), False),
        (torch.ones(()), True),
    ],
)
def test_roots_have_no_entry_twice(value: Tensor, expected: bool) -> None:
    assert is_root(value) is expected


def test_memory_in_another_dtype_is_refused() -> None:
    def run(x: Tensor) -> Tensor:
        y = torch.view_as_complex(x.reshape(4, 3, 2).clone())
        torch.view_as_real(y)[..., 0] = 1
        return y.abs()

    with pytest.raises(StructureError, match="read in another way"):
        record(run, [random(4, 6)])


# Models.


def _loop(model: nn.Module, x: Tensor) -> Tensor:
    out, hidden = torch.zeros(len(x), 5, 3, dtype=x.dtype), torch.zeros(len(x), 3, dtype=x.dtype)
    for step in range(5):
        hidden = torch.tanh(model.inner(x[:, step]) + model.outer(hidden))
        out[:, step] = hidden
    return out


def _rotary(model: nn.Module, x: Tensor) -> Tensor:
    q = model.inner(x)
    turned = torch.empty_like(q)
    angle = torch.arange(5, dtype=x.dtype).unsqueeze(1)
    turned[..., 0::2] = q[..., 0::2] * angle.cos() - q[..., 1::2] * angle.sin()
    turned[..., 1::2] = q[..., 0::2] * angle.sin() + q[..., 1::2] * angle.cos()
    return model.outer(turned)


def _causal(model: nn.Module, x: Tensor) -> Tensor:
    q = model.inner(x)
    scores = q @ q.mT
    scores[:, torch.ones(5, 5, dtype=torch.bool).triu(1)] = -torch.inf
    return model.outer(scores.softmax(-1) @ q)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "recurrence": lambda: Function(_loop, inner=nn.Linear(4, 3), outer=nn.Linear(3, 3)),
    "rotary": lambda: Function(_rotary, inner=nn.Linear(4, 6), outer=nn.Linear(6, 2)),
    "causal": lambda: Function(_causal, inner=nn.Linear(4, 6), outer=nn.Linear(6, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().double()
    agree(model, random(3, 5, 4))


def test_a_loop_that_writes_its_steps_comes_in_pieces() -> None:
    ntk = agree(MODELS["recurrence"]().double(), random(3, 5, 4))
    graph = ntk.engine.samples().jacobian.graph
    assert len(graph.pieces) == 5
    assert "written out" in ntk.engine.samples().describe()
