"""Exact kernels in tiles: right for all blocks and budgets, and not more work than the budget asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from inside import moments_by
from ntkscope import NTK
from ntkscope.engines.torch.gradients.factors import Direct, Outer
from ntkscope.engines.torch.gradients.sides import Features
from ntkscope.engines.torch.samples.inner_products import kernel_inner_products
from ntkscope.engines.torch.samples.tiles import (
    BlockSource,
    RowBlock,
    SampleRows,
    WholeRows,
    dense_kernel,
)
from zoo import BY_NAME, Case, each

VARIED = [
    "mlp", "cnn-batch-norm-eval", "gru", "tied-embedding", "class-token", "samples-last",
    "flattened-sequence-output", "conv1d-groups-dilation-same",
]  # fmt: skip
SEEDS = (0, 1, 2)


def _source(case: Case, parts: int, whole: bool = False, seed: int = 0) -> BlockSource:
    """A kernel's rows in about so many blocks."""
    ntk = case.shared(seed)
    rows = -(-ntk.n // parts)
    if whole:
        return WholeRows(ntk.engine.jacobian, rows)
    return SampleRows(ntk.engine.samples().jacobian).with_rows(rows)


class Counted:
    """A source that counts the blocks that it computes."""

    def __init__(self, source: BlockSource) -> None:
        self.source = source
        self.computed = 0

    def __len__(self) -> int:
        return len(self.source)

    def blocks(self, start: int, stop: int) -> Iterator[RowBlock]:
        for block in self.source.blocks(start, stop):
            self.computed += 1
            yield block


@each(VARIED)
@pytest.mark.parametrize("whole", [False, True], ids=["samples", "whole"])
def test_products_of_several_kernels_are_those_of_dense_ones(case: Case, whole: bool) -> None:
    dense = torch.stack([case.dense(seed).kernel for seed in SEEDS])
    inner, traces = torch.einsum("aij,bij->ab", dense, dense), dense.diagonal(dim1=1, dim2=2).sum(1)
    for parts, budget in ((1, 1 << 30), (5, 1 << 30), (3, 1), (4, 6000)):
        sources = [_source(case, parts, whole, seed) for seed in SEEDS]
        found_traces, found = kernel_inner_products(sources, budget)
        torch.testing.assert_close(torch.from_numpy(found), inner, rtol=1e-9, atol=0)
        torch.testing.assert_close(torch.from_numpy(found_traces), traces, rtol=1e-9, atol=0)
        assert (found == found.T).all()


@each(VARIED)
@pytest.mark.parametrize("whole", [False, True], ids=["samples", "whole"])
def test_the_kernel_itself_is_symmetric_and_does_not_depend_on_the_budget(case: Case, whole: bool) -> None:
    ntk, expected = case.shared(), case.dense().kernel
    kernels = []
    for budget in (1, 3000, 1 << 30):
        kernels.append(dense_kernel(_source(case, 4, whole), ntk.n, budget))
        torch.testing.assert_close(kernels[-1], expected, rtol=1e-9, atol=1e-10 * float(expected.max()))
        assert torch.equal(kernels[-1], kernels[-1].T)
    for kernel in kernels[1:]:
        torch.testing.assert_close(kernel, kernels[0], rtol=1e-12, atol=1e-13 * float(expected.max()))


@pytest.mark.parametrize("whole", [False, True], ids=["samples", "whole"])
def test_blocks_that_fit_are_computed_once_and_others_again(whole: bool) -> None:
    case = BY_NAME["mlp"]
    roomy, tight = (Counted(_source(case, 4, whole)) for _ in range(2))
    count = len(roomy)
    assert count >= 4
    kernel_inner_products([roomy], 1 << 30)
    assert roomy.computed == count
    kernel_inner_products([tight], 1)
    assert tight.computed == count * (count + 1) // 2


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_progress_counts_every_tile_once(budget: int) -> None:
    calls: list[tuple[int, int]] = []
    source = _source(BY_NAME["mlp"], 4)
    kernel_inner_products([source], budget, lambda done, total: calls.append((done, total)))
    tiles = len(source) * (len(source) + 1) // 2
    assert calls == [(done, tiles) for done in range(1, tiles + 1)]


def test_blocks_cover_every_row_once() -> None:
    for case in ("mlp", "samples-last", "gru", "flattened-sequence-output"):
        for parts in (1, 4, 1000):
            source = _source(BY_NAME[case], parts)
            found = torch.cat([block.index.reshape(-1) for block in source.blocks(0, len(source))])
            assert found.sort().values.equal(torch.arange(BY_NAME[case].shared().n))


def test_kernels_of_models_that_take_other_blocks() -> None:
    """A convolution's rows come in smaller blocks than a linear layer's."""
    x = torch.randn(40, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(25, 10)).double()
        convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 10)).double()
    first, second = NTK(linear, x), NTK(convolution, x)
    assert len(SampleRows(first.engine.samples().jacobian)) != len(
        SampleRows(second.engine.samples().jacobian)
    )
    moments = moments_by("exact (tiles)", [first, second])
    kernels = torch.stack([first.to_dense(), second.to_dense()])
    expected = torch.einsum("aij,bij->ab", kernels, kernels)
    torch.testing.assert_close(torch.from_numpy(moments.inner), expected, rtol=1e-9, atol=0)


def test_a_block_knows_its_memory() -> None:
    index = torch.zeros(2, 3, dtype=torch.long)
    delta, features = torch.zeros(2, 3, 1, 4, 5), torch.zeros(3, 1, 4, 700)
    block = RowBlock(index, [Outer(delta, Features(features)), Direct(torch.zeros(2, 3, 11))])
    assert block.bytes == 4 * (delta.numel() + features.numel() + 66)


def test_a_state_that_no_parameter_reaches_has_rows_of_zeros() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).double()

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).detach()

    ntk = NTK(Detached(), torch.ones(4, 3, dtype=torch.float64))
    source = SampleRows(ntk.engine.samples().jacobian, rows=3)
    traces, inner = kernel_inner_products([source])
    assert (traces[0], inner[0, 0]) == (0, 0)
    assert torch.equal(dense_kernel(source, 8), torch.zeros(8, 8, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["exact (tiles)", "exact (rows)"])
def test_half_precision_does_not_overflow_in_tiles(dtype: torch.dtype, way: str) -> None:
    x = 20 * torch.ones(6, 784)
    ntk = NTK(nn.Linear(784, 2).to(dtype), x.to(dtype))
    moments = moments_by(way, [ntk])
    # K = (‖x‖² + 1) for equal outputs of any two samples.
    entry = 784 * 400 + 1
    assert moments.traces[0] == pytest.approx(12 * entry, rel=0.01)
    assert moments.inner[0, 0] == pytest.approx(72 * entry**2, rel=0.02)
    if dtype == torch.bfloat16:
        assert ntk.to_dense().dtype == dtype
    else:
        with pytest.raises(ValueError, match=r"beyond the range of torch\.float16"):
            ntk.to_dense()
