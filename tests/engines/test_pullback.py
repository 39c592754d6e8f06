"""Products Jᵀz: whichever way the backward passes go, they give what one of the user's own gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from reference import dense


class _InPlace(torch.autograd.Function):
    """Writes its gradient over what it kept, to save memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.detach().cos()
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return ctx.kept.mul_(grads[0])


class _Fading(torch.autograd.Function):
    """Its gradient halves with every backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.detach().cos()
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gradient = grads[0] * ctx.kept
        ctx.kept = ctx.kept / 2
        return gradient


class _Once(torch.autograd.Function):
    """Frees what it kept, whatever it was asked to retain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = [x.detach().cos()]
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.kept.pop()


class _Adding(torch.autograd.Function):
    """Adds up the gradients of all its backward passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.total = torch.zeros_like(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        ctx.total = ctx.total + grads[0]
        return ctx.total * ctx.saved_tensors[0].cos()


class Custom(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def _models(function: type[torch.autograd.Function]) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, its twin by plain operations, and inputs."""
    torch.manual_seed(0)
    model, twin = Custom(function.apply).double(), Custom(torch.sin).double()  # type: ignore[arg-type]
    twin.load_state_dict(model.state_dict())
    return model, twin, torch.randn(5, 3, dtype=torch.float64)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("function", [_InPlace, _Fading, _Once, _Adding])
def test_a_backward_pass_that_changes_what_it_kept(
    function: type[torch.autograd.Function], chunk_size: int | None
) -> None:
    model, twin, x = _models(function)
    right = dense(twin, x)
    ntk = NTK(model, x, chunk_size=chunk_size)
    for _ in range(2):
        torch.testing.assert_close(ntk.vjp(torch.eye(ntk.n, dtype=torch.float64)).T, right.jacobian)
    assert ntk.trace(method="exact").value == pytest.approx(right.trace, rel=1e-12)
    assert ntk.frobenius_norm(method="exact").value == pytest.approx(right.frobenius_norm, rel=1e-12)


def test_a_wrong_batch_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule for batches that mixes its rows: single rows serve."""
    _, twin, x = _models(_InPlace)
    grad = torch.autograd.grad

    def mixing(*args: Any, **kwargs: Any) -> Any:
        found = grad(*args, **kwargs)
        return tuple(g.flip(0) for g in found) if kwargs.get("is_grads_batched") else found

    ntk = NTK(twin, x)
    monkeypatch.setattr(torch.autograd, "grad", mixing)
    found = ntk.vjp(torch.eye(ntk.n, dtype=torch.float64)).T
    torch.testing.assert_close(found, dense(twin, x).jacobian)
    assert not ntk.engine.jacobian._pullback.is_batched


def test_plain_models_go_back_in_batches_of_one_recorded_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check takes one backward pass of two rows, once."""
    _, twin, x = _models(_InPlace)
    ntk = NTK(twin, x, chunk_size=4)
    rows: list[int] = []
    grad = torch.autograd.grad

    def counted(outputs: Any, inputs: Any, z: Tensor, **kwargs: Any) -> Any:
        rows.append(len(z))
        return grad(outputs, inputs, z, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    for _ in range(2):
        ntk.vjp(torch.eye(ntk.n, dtype=torch.float64))
    assert rows == [4, 2, 4, 2, 4, 4, 2]
