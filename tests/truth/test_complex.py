"""Complex parameters are two real ones each, on every path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from truth.reference import alignment, dense
from truth.verdict import assert_right, check_model

pytestmark = pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")


class Intensity(nn.Module):
    """A complex linear layer whose intensity is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.lens, self.head = nn.Linear(4, 3, dtype=torch.cdouble), nn.Linear(3, 2, dtype=torch.double)

    def forward(self, x: Tensor) -> Tensor:
        field = self.lens(x.to(torch.cdouble))
        return self.head((field * field.conj()).real)


class Phases(nn.Module):
    """A diagonal recurrence with complex poles, read out by a complex vector and its conjugate."""

    def __init__(self) -> None:
        super().__init__()
        self.pole = nn.Parameter(0.7 * torch.exp(1j * torch.rand(3, dtype=torch.double)))
        self.read = nn.Parameter(torch.randn(3, 2, dtype=torch.cdouble))
        self.drive = nn.Linear(4, 3, dtype=torch.double)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 3, dtype=torch.cdouble)
        for _ in range(3):
            state = state * self.pole + self.drive(x)
        return (state @ self.read + (state.conj() @ self.read.conj())).real


class Conjugated(nn.Module):
    """A complex weight used twice, once conjugated, with another that is real."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.cdouble) / 2)
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.double))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.fft(x) @ self.weight
        return torch.fft.ifft(y @ self.weight.mH).real * self.scale


class _Sine(torch.autograd.Function):
    """Without a forward mode, so that products Ju are second derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].cos()


def _clamped(x: Tensor) -> Tensor:
    return _Sine.apply(x).clamp(-0.9, 0.9)


class AfterOdd(nn.Module):
    """Complex parameters behind an odd number of real ones."""

    def __init__(self, bend: Callable[[Tensor], Tensor], width: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(4, width, dtype=torch.double)
        self.pole = nn.Parameter(torch.randn(width, dtype=torch.cdouble))
        self.scale = nn.Parameter(torch.randn((), dtype=torch.double))
        self.mix = nn.Parameter(torch.randn(width, 2, dtype=torch.cdouble))
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (self.bend(self.first(x)) * self.pole @ self.mix.conj()).imag


MODELS = [Intensity, Phases, Conjugated]


def _made(kind: type[nn.Module], seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    model = kind()
    torch.manual_seed(7)
    return model, torch.randn(3, 4, dtype=torch.double)


@pytest.mark.parametrize("kind", MODELS)
def test_every_metric(kind: type[nn.Module]) -> None:
    model, x = _made(kind)
    check_model(model, x, lambda: model(x))


@pytest.mark.parametrize("kind", MODELS)
def test_products(kind: type[nn.Module]) -> None:
    """Jᵀz and Ju have an entry for the real and the imaginary part of every complex number."""
    model, x = _made(kind)
    ntk, jacobian = NTK(model, x), dense(model, lambda: model(x)).jacobian
    assert ntk.n_params == jacobian.shape[1]
    z, u = torch.randn(ntk.n, 2, dtype=torch.double), torch.randn(ntk.n_params, 2, dtype=torch.double)
    torch.testing.assert_close(ntk.vjp(z), jacobian.T @ z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ntk.jvp(u), jacobian @ u, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ntk @ z, jacobian @ (jacobian.T @ z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("bend", [torch.sin, _Sine.apply, _clamped])
def test_products_where_pairs_begin_at_odd_places(
    bend: Callable[[Tensor], Tensor], width: int, rows: int
) -> None:
    torch.manual_seed(0)
    model, x = AfterOdd(bend, width), torch.randn(3, 4, dtype=torch.double)
    ntk, jacobian = NTK(model, x), dense(model, lambda: model(x)).jacobian
    u = torch.randn(ntk.n_params, rows, dtype=torch.double)
    torch.testing.assert_close(ntk.jvp(u), jacobian @ u, rtol=1e-10, atol=1e-10)
    check_model(model, x, lambda: model(x))


@pytest.mark.parametrize("kind", MODELS)
def test_alignment(kind: type[nn.Module]) -> None:
    (model, x), (other, _) = _made(kind), _made(kind, 1)
    right = alignment(dense(model, lambda: model(x)), dense(other, lambda: other(x)))
    assert_right(NTK(model, x).alignment(NTK(other, x), method="exact"), right)
