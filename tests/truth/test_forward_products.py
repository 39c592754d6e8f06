"""Ju, by whatever mode it comes, is the transpose of Jᵀz, entry by entry; or it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from truth.reference import Dense, dense
from truth.verdict import assert_right_or_refused, unless_refused


class _CutGradient(torch.autograd.Function):
    """A backward pass that detaches: a second derivative of zero, without a word."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].detach() * ctx.saved_tensors[0].cos()


class _WrongTangent(torch.autograd.Function):
    """A forward mode that is one half off for a part of its features."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        scale = torch.ones(tangent.shape[-1], dtype=tangent.dtype)
        scale[0] = 1.5
        return tangent * ctx.saved_tensors[0].cos() * scale


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function.apply(self.first(x)))


class Cumulative(nn.Module):
    """Log of cumulated sums of exponentials over a range wider than float64's."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.logcumsumexp(400 * self.scores(x), dim=-1)[:, 2:]


class Frequencies(nn.Module):
    """Gradients of a word that are divided by its count in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3, scale_grad_by_freq=True), nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(tokens)).sum(1))


class Padded(nn.Module):
    """A padded row of an embedding that the reverse pass leaves out, and forward mode does not."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(40, 3, padding_idx=0), nn.Linear(3, 2)
        with torch.no_grad():
            self.words.weight[0] = 0.3

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(tokens)).sum(1))


def _case(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x, tokens = (
        torch.randn(4, 3, dtype=torch.double),
        torch.tensor([[1, 1, 2], [2, 2, 2], [3, 0, 1], [4, 1, 0]]),
    )
    if name in ("cut gradient", "wrong tangent"):
        return Custom(_CutGradient if name == "cut gradient" else _WrongTangent).double(), x
    if name == "cumulative":
        return Cumulative().double(), x
    return (Padded() if name == "padded" else Frequencies()).double(), tokens


CASES = ["cut gradient", "wrong tangent", "cumulative", "frequencies", "padded"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[NTK, Dense]:
    model, inputs = _case(request.param)
    return NTK(model, inputs), dense(model, lambda: model(inputs))


def test_products(case: tuple[NTK, Dense]) -> None:
    ntk, right = case
    u = torch.eye(ntk.n_params, dtype=torch.double)
    found = unless_refused(lambda: ntk.jvp(u))
    if found is None:
        return
    torch.testing.assert_close(
        found, right.jacobian, rtol=1e-8, atol=1e-8 * float(right.jacobian.abs().max())
    )


@pytest.mark.parametrize("method", ["hutch++", "fhutch", "sketch", "nystrom", "auto"])
def test_estimates(case: tuple[NTK, Dense], method: str) -> None:
    ntk, right = case
    products = None if method == "auto" else 40
    assert_right_or_refused(lambda: ntk.trace(method=method, products=products), right.trace)


def test_norm_to_a_tolerance(case: tuple[NTK, Dense]) -> None:
    ntk, right = case
    assert_right_or_refused(lambda: ntk.frobenius_norm(method="sketch", rtol=0.02), right.frobenius_norm)
