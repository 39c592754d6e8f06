"""The rule of embeddings against the dense Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agreement import each_alone
from inside import refusal
from ntkscope import NTK
from reference import dense


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
