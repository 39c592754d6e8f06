"""Outer products times a shared matrix, against the gradients themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Outer
from ntkscope.engines.torch.gradients.pulled import reduced, scaled, spread, through_product, total, turned
from ntkscope.engines.torch.gradients.sides import Features, Lookup
from ntkscope.engines.torch.gradients.weighted import Term, Weighted

K, B, M, N = 3, 4, 5, 6


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _outer(positions: int = 1, transposed: bool = False) -> Outer:
    rows, columns = (N, M) if transposed else (M, N)
    return Outer(_random(K, B, 1, positions, rows), Features(_random(B, 1, positions, columns)), transposed)


def _weighted() -> Weighted:
    terms = (
        Term(_random(K, B, 1, M), _random(1, B, 1, N), _random(M, N)),
        Term(_random(1, 1, 2, M), _random(K, B, 2, N)),
        Term(_random(K, 1, 1, M), _random(1, 1, 1, N), _random(M, N) - 1),
    )
    return Weighted(terms, K, B)


def test_norms_sums_and_tiles() -> None:
    found = _weighted()
    rows = found.rows()
    by_hand = sum(
        torch.einsum("kbtm,kbtn->kbmn", t.rows.expand(K, B, -1, -1), t.columns.expand(K, B, -1, -1))
        * (1 if t.weights is None else t.weights)
        for t in found.terms
    )
    torch.testing.assert_close(rows, by_hand.flatten(2))
    torch.testing.assert_close(found.squared_norms(), rows.square().sum(2))
    torch.testing.assert_close(found.summed(), rows.sum(1))
    tile = torch.zeros(K, B, K, B, dtype=torch.float64)
    found.add_tile(_outer(), tile)
    torch.testing.assert_close(tile, torch.einsum("kbp,lcp->kblc", rows, _outer().rows()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_that_cancel(dtype: torch.dtype) -> None:
    one = _random(K, B, 1, M).to(dtype)
    other = (one.double() * (1 + 1e-3 * _random(K, B, 1, M))).to(dtype)
    columns, weights = _random(1, B, 1, N).to(dtype), _random(M, N).to(dtype)
    found = Weighted((Term(one, columns, weights), Term(-other, columns, weights)), K, B)
    wide = ((one.double() - other.double()).mT @ columns.double() * weights.double()).square().sum((2, 3))
    rtol = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found.squared_norms().double(), wide, rtol=rtol, atol=0)


def test_squares_beyond_the_range_of_float32() -> None:
    weights = (_random(M, N) * 1e-15).float()
    found = Weighted((Term(_random(K, B, 1, M).float(), _random(1, B, 1, N).float(), weights),), K, B)
    expected = found.rows().double().square().sum(2)
    torch.testing.assert_close(found.squared_norms().double(), expected, rtol=1e-5, atol=0)


SLOPES = {
    "full": _random(M, N),
    "rows": _random(M, 1).expand(M, N),
    "columns": _random(N).expand(M, N),
    "one": torch.ones(M, N, dtype=torch.float64),
    "uniform": torch.full((M, N), 0.3, dtype=torch.float64),
}


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_entry_by_entry(slope: str, transposed: bool, positions: int) -> None:
    factor, values = _outer(positions, transposed), SLOPES[slope]
    for one in (factor, _weighted(), Direct(factor.rows())):
        found = scaled(one, values)
        assert found is not None
        torch.testing.assert_close(found.rows(), one.rows() * values.flatten())
        for shape in [(), (M, 1), (N,), (1, N), (1, 1)]:
            summed = reduced(one, values, torch.Size(shape))
            assert summed is not None
            expected = torch.stack(
                [(g.reshape(M, N) * values).sum_to_size(shape) for g in one.rows().flatten(0, 1)]
            )
            torch.testing.assert_close(summed.rows().flatten(), expected.flatten())


def test_slopes_of_zero_lead_nowhere() -> None:
    zeros = torch.zeros(M, N, dtype=torch.float64)
    assert scaled(_outer(), zeros) is None
    assert reduced(_outer(), zeros, torch.Size((M, 1))) is None


def test_what_stays_an_outer_product() -> None:
    for slope in ("rows", "columns", "one", "uniform"):
        assert isinstance(scaled(_outer(7), SLOPES[slope]), Outer)
    assert isinstance(scaled(_outer(), SLOPES["full"]), Weighted)
    assert isinstance(scaled(_outer(7), SLOPES["full"]), Direct)
    assert isinstance(total([_outer(2), _outer(5)]), Outer)
    assert isinstance(total([_outer(), spread(Direct(_random(K, B, M)), _random(M, N))]), Weighted)


@pytest.mark.parametrize("transposed", [False, True])
def test_transposes_and_products(transposed: bool) -> None:
    factor = _outer(3, transposed)
    gradient = factor.rows().reshape(K, B, M, N)
    flipped = turned(factor, (M, N))
    assert flipped is not None
    torch.testing.assert_close(flipped.rows(), gradient.mT.flatten(2))
    left, right = _random(M, 2), _random(2, N)
    found = through_product(factor, left, right)
    assert found is not None
    torch.testing.assert_close(found[0].rows(), (gradient @ right.mT).flatten(2))
    torch.testing.assert_close(found[1].rows(), (left.mT @ gradient).flatten(2))


def test_looked_up_rows() -> None:
    index = torch.tensor([[0], [1], [4], [4]])
    factor = Outer(_random(K, B, 1, 1, N), Lookup(index, M), transposed=True)
    found = scaled(factor, SLOPES["full"])
    assert found is not None
    torch.testing.assert_close(found.rows(), factor.rows() * SLOPES["full"].flatten())


@pytest.mark.parametrize("columns", [False, True])
def test_spread(columns: bool) -> None:
    gradient, of_result = _random(M, N), _random(K, B, N if columns else M)
    found = spread(Direct(of_result), gradient, columns=columns).rows().reshape(K, B, M, N)
    along = of_result.unsqueeze(2) if columns else of_result.unsqueeze(3)
    torch.testing.assert_close(found, along * gradient)
