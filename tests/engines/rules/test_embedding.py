"""The rule of embeddings against the dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agreement import each_alone
from inside import refusal
from ntkscope import NTK
from reference import dense
from zoo import Function


@pytest.mark.parametrize("padding", [None, 0, -1], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 2, 3)], ids=str)
def test_embeddings(shape: tuple[int, ...], padding: int | None) -> None:
    index = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0))
    index.reshape(-1)[:2] = torch.tensor([0, 3])
    each_alone(lambda: nn.Embedding(4, 3, padding_idx=padding), index)


def test_a_sparse_embedding_has_the_dense_ones_kernel() -> None:
    index = torch.tensor([[0, 1, 1], [2, 0, 3]])
    for kind in (nn.Embedding, nn.EmbeddingBag):
        table = kind(4, 3).double()
        expected = dense(table, index).kernel
        table.sparse = True
        ntk = NTK(table, index)
        torch.testing.assert_close(ntk.to_dense(), expected)
        torch.testing.assert_close(ntk.vjp(torch.eye(ntk.n)).T @ ntk.vjp(torch.eye(ntk.n)), expected)
        assert ntk.trace("exact").value == pytest.approx(float(expected.trace()))
        assert table.sparse
    ntk = NTK(nn.Embedding(4, 3, sparse=True), index)
    torch.testing.assert_close(ntk @ torch.eye(ntk.n), ntk.to_dense())


def test_embeddings_that_divide_by_counts_are_not_taken_apart() -> None:
    index = torch.tensor([[0, 1, 1], [1, 1, 3]])
    ntk = NTK(nn.Embedding(4, 2, scale_grad_by_freq=True).double(), index)
    reason = refusal(ntk)
    assert reason
    assert "do not add up to the gradient of the batch" in reason


# Tables that are read in other ways.


def _relative(size: int) -> Tensor:
    steps = torch.arange(size)
    return steps[:, None] - steps[None] + size - 1


#: The function of a table and tokens among 4, shape (3, 5); the shape of the table.
TABLES: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "index": (lambda m, x: m.w[x], (4, 3)),
    "index-negative": (lambda m, x: m.w[x - 4], (4, 3)),
    "index-vector": (lambda m, x: m.w[x], (4,)),
    "index-second-axis": (lambda m, x: m.w[:, x].transpose(0, 1), (2, 4)),
    "index-between-axes": (lambda m, x: m.w[:, x].transpose(0, 1), (2, 4, 3)),
    "index-two-axes": (lambda m, x: m.w[x, 3 - x], (4, 4, 2)),
    "index-two-axes-broadcast": (lambda m, x: m.w[x[:, :, None], torch.arange(3)], (4, 3)),
    "index-select": (lambda m, x: m.w.index_select(0, x.flatten()).view(len(x), 5, 3), (4, 3)),
    "index-select-last": (
        lambda m, x: m.w.index_select(-1, x.flatten()).view(2, -1, 5).transpose(0, 1),
        (2, 4),
    ),
    "gather": (lambda m, x: m.w.gather(0, x.view(-1, 1).expand(-1, 3)).view(len(x), 5, 3), (4, 3)),
    "gather-last": (lambda m, x: torch.stack([m.w.gather(-1, y.view(1, -1)) for y in x]), (2, 4)),
    "take": (lambda m, x: m.w.take(x * 2), (4, 3)),
    "relative-bias": (
        lambda m, x: torch.softmax(x[:, None, None] + m.w[_relative(5)].permute(2, 0, 1), -1),
        (9, 2),
    ),
    "window-bias": (
        lambda m, x: torch.tanh(x[:, None, None] + m.w[_relative(5).view(-1)].view(5, 5, 2).permute(2, 0, 1)),
        (9, 2),
    ),
    "long-sequence": (lambda m, x: torch.tanh(m.w[x.repeat(1, 4)]).cumsum(1)[:, -2:], (60, 3)),
    "bags-of-largest": (lambda m, x: F.embedding_bag(x, m.w, mode="max"), (4, 3)),
}  # fmt: skip


@pytest.mark.parametrize(("run", "shape"), TABLES.values(), ids=TABLES)
def test_tables(run: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    index = torch.randint(0, 4, (3, 5), generator=torch.Generator().manual_seed(0))
    each_alone(lambda: Function(run, w=torch.randn(shape)), index)
