"""Checks look at all samples and all parameters: what shows late, or hardly, is found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from truth.reference import dense
from truth.verdict import assert_right, unless_refused


class LateCoupling(nn.Module):
    """Samples with a flag share their mean through a gate that is zero: values show nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 1)
        self.gate = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x[:, 1:]))
        flag = x[:, :1]
        return self.head(hidden + flag * self.gate * (flag * hidden).sum(0, keepdim=True))


class LateNeighbour(LateCoupling):
    """The last two samples see each other, in gradients alone."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x[:, 1:]))
        neighbour = torch.cat([torch.zeros_like(hidden[:-1]), hidden[-2:-1]]) if len(x) > 1 else 0 * hidden
        return self.head(hidden + x[:, :1] * self.gate * neighbour)


class LateMean(LateCoupling):
    """A mean over the flagged samples whose value is taken off again."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x[:, 1:]))
        flag = x[:, :1]
        mean = (flag * hidden).sum(0, keepdim=True)
        return self.head(hidden + flag * (mean - mean.detach()))


@pytest.mark.parametrize("kind", [LateCoupling, LateNeighbour, LateMean])
@pytest.mark.parametrize("first_flagged", [2, 41, 58])
def test_coupling_that_begins_late(kind: type[nn.Module], first_flagged: int) -> None:
    """With a memory budget that takes a part of the batch at a time."""
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(60, 5, dtype=torch.double)
    x[:, 0] = (torch.arange(60) >= first_flagged).double()
    right = dense(model, lambda: model(x))
    ntk = NTK(model, x, memory=20_000)
    assert_right(ntk.trace(method="exact"), right.trace)
    assert_right(ntk.frobenius_norm(method="exact"), right.frobenius_norm)


class PaddedBag(nn.Module):
    """Many words, one of them padding: forward mode moves its row, the reverse pass does not."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(30, 4, padding_idx=0), nn.Linear(4, 2)
        with torch.no_grad():
            self.words.weight[0] = 0.1

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(tokens)).sum(1))


class PartlyCut(nn.Module):
    """A part of the state whose history is cut where one feature passes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 30), nn.Linear(30, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.body(torch.nn.functional.one_hot(tokens % 4, 4).to(self.body.weight.dtype).sum(1))
        with torch.no_grad():
            cut = 1e-2 * hidden[:, :1]
        return self.head(torch.tanh(torch.cat([cut, hidden[:, 1:]], 1)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_padded_word_among_many(seed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    model, tokens = PaddedBag().to(dtype), torch.randint(1, 30, (1500, 8))
    tokens[int(torch.randint(0, 1500, ())), 2] = 0
    ntk = NTK(model, tokens)
    padded = torch.zeros(ntk.n_params, 4, dtype=dtype)
    padded[:4] = torch.eye(4, dtype=dtype)
    found = unless_refused(lambda: ntk.jvp(padded))
    if found is None:
        return
    assert float(found.abs().max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_history_cut_at_one_feature(dtype: torch.dtype) -> None:
    """The row of the weight whose feature goes under ``torch.no_grad()`` does not move the state."""
    torch.manual_seed(0)
    model, tokens = PartlyCut().to(dtype), torch.randint(0, 30, (300, 8))
    ntk = NTK(model, tokens)
    row = torch.zeros(ntk.n_params, 4, dtype=dtype)
    row[:4] = torch.eye(4, dtype=dtype)
    found = unless_refused(lambda: ntk.jvp(row))
    if found is None:
        return
    assert float(found.abs().max()) == 0
