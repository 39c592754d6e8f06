"""The check of a structure: what is wrong by more than rounding is found and named, what is right is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inside import refusal, structure
from ntkscope import NTK
from ntkscope.engines.torch.samples import check
from truth.reference import dense
from zoo import Function

HALVES = [torch.bfloat16, torch.float16]


def _made(
    between: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64, batch: int = 24
) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Function(
            lambda m, x: m.last(between(m.first(x))), first=nn.Linear(6, 16), last=nn.Linear(16, 3)
        )
        return model.to(dtype), torch.randn(batch, 6).to(dtype)


# What is coupled.


def _less_the_mean(share: float) -> Callable[[Tensor], Tensor]:
    return lambda h: torch.relu(h) - share * torch.relu(h).mean(0, keepdim=True)


def _mean_in_gradients(share: float) -> Callable[[Tensor], Tensor]:
    return lambda h: torch.tanh(h) + share * (h.mean(0, keepdim=True) - h.mean(0, keepdim=True).detach())


def _last_two(h: Tensor) -> Tensor:
    """The last sample has a thousandth of the gradient of the one before, and its own value."""
    neighbour = torch.cat([torch.zeros_like(h[:-1]), h[-2:-1]]) if len(h) > 1 else torch.zeros_like(h)
    return torch.tanh(h) + 1e-3 * (neighbour - neighbour.detach())


@pytest.mark.parametrize(
    ("between", "dtype", "says"),
    [
        (_less_the_mean(0.1), torch.bfloat16, "depends on the other samples"),
        (_less_the_mean(0.01), torch.float16, "depends on the other samples"),
        (_less_the_mean(1e-4), torch.float32, "depends on the other samples"),
        (_mean_in_gradients(0.1), torch.bfloat16, "samples are coupled"),
        (_mean_in_gradients(0.02), torch.float16, "samples are coupled"),
        (_mean_in_gradients(1e-4), torch.float32, "samples are coupled"),
        (_mean_in_gradients(1e-9), torch.float64, "samples are coupled"),
        (_last_two, torch.float64, "samples are coupled"),
        (_last_two, torch.float32, "samples are coupled"),
    ],
)
def test_coupling_is_found(between: Callable[[Tensor], Tensor], dtype: torch.dtype, says: str) -> None:
    assert says in refusal(NTK(*_made(between, dtype)))


@pytest.mark.parametrize("budget", [1 << 30, 20_000])
def test_coupling_is_found_in_the_last_samples(budget: int) -> None:
    model, x = _made(_last_two)
    ntk = NTK(model, x, memory=budget)
    assert "samples are coupled" in refusal(ntk)
    assert ntk.trace(method="exact").value == pytest.approx(dense(model, lambda: model(x)).trace, rel=1e-9)


# What has another gradient than its forward pass.


class _Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.flip(-1)


def _hooked(h: Tensor) -> Tensor:
    y = torch.tanh(h)
    if y.requires_grad:
        y.register_hook(lambda gradient: 1.001 * gradient)
    return y


def _turned(h: Tensor) -> Tensor:
    """The gradient's entries change places: its norm is as it was, whichever parameters are summed."""
    y = h + 0
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient.flip(-1))
    return y


@pytest.mark.parametrize(
    ("between", "says"),
    [
        (_turned, "has its own backward pass"),
        (_Flipped.apply, "_Flipped has its own backward pass"),
        (_hooked, "has its own backward pass"),
    ],
    ids=["turned", "function", "hook"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_has_its_own_backward_pass_is_named(
    between: Callable[[Tensor], Tensor], says: str, dtype: torch.dtype
) -> None:
    if between is _hooked and dtype == torch.bfloat16:
        pytest.skip("a thousandth is below the rounding")
    assert says in refusal(NTK(*_made(between, dtype)))


def test_a_backward_of_its_own_that_no_gradient_passes_does_no_harm() -> None:
    model, x = _made(lambda h: torch.tanh(h) * _Flipped.apply(torch.ones(16, dtype=h.dtype)))
    assert refusal(NTK(model, x)) == ""


# What is right.


def _images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(54, 3),
    )  # fmt: skip


def _deep() -> nn.Module:
    return nn.Sequential(*[part for _ in range(12) for part in (nn.Linear(24, 24), nn.ReLU())])


HONEST = {"images": (_images, (40, 2, 8, 8)), "deep": (_deep, (60, 24))}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_and_kinks_are_no_coupling(name: str, dtype: torch.dtype, seed: int) -> None:
    make, shape = HONEST[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x = make().to(dtype), torch.randn(shape).to(dtype)
    # Whole numbers and zeros lie on kinks.
    x[::3] = x[::3].round()
    assert refusal(NTK(model, x)) == ""


@pytest.mark.parametrize("dtype", HALVES)
def test_cancellation_is_measured(dtype: torch.dtype) -> None:
    """Keys' biases have no gradient but what rounding makes of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model, x = nn.Sequential(layer, nn.Flatten()).to(dtype), torch.randn(12, 4, 8).to(dtype)
    assert refusal(NTK(model, x)) == ""


# Another sample.


def _masked(h: Tensor) -> Tensor:
    mask = h.detach()[..., 0] > 0
    return torch.tanh(h) if bool(mask.all()) else torch.tanh(h) * mask[..., None].to(h.dtype)


def _two_ways(h: Tensor) -> Tensor:
    if len(h) > 1:
        return torch.cat([_two_ways(row[None]) for row in h])
    return torch.tanh(h) if float(h.detach().sum()) > 0 else torch.sin(h)


def test_another_sample_is_recorded_where_the_first_ones_graph_does_not_hold() -> None:
    model, x = _made(_masked)
    plain = model.first(x)[:, 0] > 0
    order = torch.cat([torch.nonzero(plain), torch.nonzero(~plain)]).flatten()
    ntk = NTK(model, x[order])
    assert 0 < int(plain.sum()) < len(x)
    assert refusal(ntk) == ""
    expected = dense(model, lambda: model(x[order])).trace
    assert float(structure(ntk).frobenius_squared().sum()) == pytest.approx(expected, rel=1e-12)


def test_branches_that_no_graph_holds_are_named() -> None:
    model, x = _made(_two_ways)
    found = refusal(NTK(model, x))
    assert "depends on the values of its inputs (a branch" in found
    assert "batch norm" not in found


class Mixed(nn.Module):
    """A sparse matrix, whose backward pass takes one gradient at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.register_buffer("mixing", (torch.eye(4) + torch.ones(4).diag()).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(torch.sparse.mm(self.mixing, hidden.T).T)


def test_backward_passes_that_cannot_be_batched_go_one_by_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Mixed().double(), torch.randn(24, 6, dtype=torch.float64)
    ntk, right = NTK(model, x), dense(model, lambda: model(x))
    assert ntk.trace(method="exact").value == pytest.approx(right.trace, rel=1e-9)
    torch.testing.assert_close(ntk.to_dense(), right.kernel)


# What it costs.


def _counted(model: nn.Module, x: Tensor, budget: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, bool]:
    """Samples that the user's own module is run for, and whether rounding was measured."""
    measured: list[Any] = []
    ntk = NTK(model, x, memory=budget)
    original = check._Check._compare_states
    monkeypatch.setattr(
        check._Check, "_compare_states", lambda self, *args: (measured.append(1), original(self, *args))[1]
    )
    calls: list[int] = []
    handle = model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    structure(ntk)
    handle.remove()
    return sum(calls), bool(measured)


@pytest.mark.parametrize("budget", [1 << 30, 50_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_models_own_batch_is_not_run_again(
    dtype: torch.dtype, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The witness is known, so that one sample is run to find the axes, and to record."""
    model, x = _made(torch.tanh, dtype)
    samples, measured = _counted(model, x, budget, monkeypatch)
    assert samples <= 2
    assert not measured
