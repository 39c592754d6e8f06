"""Outer products at the edge of a dtype: scales beyond float32, and Gram matrices whose terms cancel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Order, Outer
from ntkscope.engines.torch.gradients.sides import Features, Lookup, in_range, square_sum

PROBES, BATCH = 3, 4
# (groups, positions, outputs, features): one position, Gram matrices cheaper, gradients cheaper.
SHAPES = [(1, 1, 6, 5), (2, 1, 3, 4), (1, 4, 12, 16), (2, 3, 8, 9), (1, 12, 2, 3)]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sides(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    groups, positions, outputs, width = shape
    return (
        _random(PROBES, BATCH, groups, positions, outputs),
        _random(BATCH, groups, positions, width, seed=1),
    )


def _gram(left: Factor, right: Factor) -> Tensor:
    """Inner products from the forms that tiles take, in float64."""
    total = torch.zeros(PROBES, BATCH, PROBES, BATCH, dtype=torch.float64)
    left.settled(10_000).add_tile(right.settled(10_000), total)
    return total.flatten(0, 1).flatten(1)


def _true(delta: Tensor, features: Tensor) -> Tensor:
    """JJᵀ by gradients formed in float64."""
    rows = torch.einsum("kbgto,bgti->kbgoi", delta.double(), features.double()).flatten(2).flatten(0, 1)
    return rows @ rows.T


def _assert_right(factor: Outer, true: Tensor, rtol: float) -> None:
    """Norms relative to themselves, inner products relative to both norms."""
    norms = true.diagonal()
    assert float((factor.squared_norms().double().flatten() / norms - 1).abs().max()) < rtol
    assert float(((_gram(factor, factor) - true).abs() / (norms * norms[:, None]).sqrt()).max()) < rtol


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "scales", [(1e22, 1.0), (1e-22, 1.0), (1.0, 1e22), (1.0, 1e-22), (1e18, 1e15), (1e-25, 1e25)], ids=str
)
def test_scales_beyond_the_range_of_squares(
    shape: tuple[int, int, int, int], scales: tuple[float, float]
) -> None:
    delta, features = ((s * x).float() for s, x in zip(scales, _sides(shape), strict=True))
    _assert_right(Outer(delta, Features(features)), _true(delta, features), 1e-5)


@pytest.mark.parametrize("scale", [1e-22, 1e22])
def test_scales_of_formed_gradients(scale: float) -> None:
    values = (scale * _random(PROBES, BATCH, 7)).float()
    factor, exact = Direct(values), values.double().flatten(0, 1)
    torch.testing.assert_close(
        factor.squared_norms().double().flatten(), (exact**2).sum(1), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(_gram(factor, factor), exact @ exact.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 4, 12, 16), (1, 12, 2, 3), (1, 1, 6, 5)], ids=str)
def test_gradients_beyond_float16_are_formed_in_float32(shape: tuple[int, int, int, int]) -> None:
    delta, features = ((300 * x).half() for x in _sides(shape))
    factor = Outer(delta, Features(features))
    _assert_right(factor, _true(delta, features), 1e-5)
    assert factor.rows().dtype == torch.float32


def _cancelling(kind: str, offset: float) -> tuple[Tensor, Tensor]:
    """δ that sums to zero over the positions of features which hardly differ there, and these."""
    delta, features = _sides((1, 4, 12, 16))
    if kind == "mean":
        return delta - delta.mean(3, keepdim=True), features + offset
    if kind == "differences":
        return delta - delta.roll(1, dims=3), features + offset * _random(BATCH, 1, 1, 16, seed=2)
    if kind == "one sample":
        delta[:, 0] -= delta[:, 0].mean(2, keepdim=True)
        features[0] += offset
        return delta, features
    pairs = _random(BATCH, 1, 2, 16, seed=3).repeat_interleave(2, dim=2)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).reshape(4, 1)
    return delta[..., :1, :] * signs, features + offset * pairs


@pytest.mark.parametrize("kind", ["mean", "differences", "one sample", "pairs"])
@pytest.mark.parametrize(
    ("dtype", "offset", "rtol"), [(torch.float32, 1e4, 1e-3), (torch.float64, 1e7, 1e-7)], ids=str
)
def test_terms_that_cancel(kind: str, dtype: torch.dtype, offset: float, rtol: float) -> None:
    """To what gradients that are formed in this dtype have; Gram matrices are off by more than 1."""
    delta, features = (x.to(dtype) for x in _cancelling(kind, offset))
    # The first position's features taken off, nothing cancels but in what δ sums to.
    first = features.double()[:, :, :1]
    formed = torch.einsum("kbgto,bgti->kbgoi", delta.double(), features.double() - first)
    formed = formed + delta.double().sum(3).unsqueeze(-1) * first
    rows = formed.flatten(2).flatten(0, 1)
    factor = Outer(delta, Features(features))
    _assert_right(factor, rows @ rows.T, rtol)
    alone, terms = factor._squares_by_gram()
    assert float((terms / alone.abs()).max()) > 1e5


def test_words_that_come_twice_cancel() -> None:
    index = torch.tensor([[0, 1, 1, 2], [3, 3, 0, 0]])
    delta = 1e3 * _random(1, 2, 1, 4, 20).float()
    delta[0, 1, 0, 1], delta[0, 1, 0, 3] = -delta[0, 1, 0, 0] * (1 + 1e-4), -delta[0, 1, 0, 2] * (1 + 1e-4)
    found = Outer(delta, Lookup(index, 40), True).squared_norms().double()
    exact = Outer(delta.double(), Lookup(index, 40), True).rows()
    torch.testing.assert_close(found, (exact**2).sum(2), rtol=1e-5, atol=0)


def test_ordinary_terms_are_left_in_their_form_and_dtype() -> None:
    for shape in SHAPES[:4]:
        delta, features = (x.float() for x in _sides(shape))
        factor = Outer(delta, Features(features))
        assert factor.settled(10) is factor or isinstance(factor.settled(10), Direct)
        assert factor.settled(10).dtype == torch.float32
        assert factor.squared_norms().dtype == torch.float32


def test_no_gradient_is_no_loss_of_range() -> None:
    factor = Outer(torch.zeros(PROBES, BATCH, 1, 4, 12), Features(torch.ones(BATCH, 1, 4, 16)))
    assert not factor.squared_norms().any()
    assert factor.settled(10_000).dtype == torch.float32
    assert not Direct(torch.zeros(2, 2, 3)).settled(4).rows().any()


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_sides_of_two_dtypes_are_taken_in_the_wider(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for shape in SHAPES:
        delta, features = (x.to(dtype) for x, dtype in zip(_sides(shape), dtypes, strict=True))
        factor = Outer(delta, Features(features))
        assert factor.dtype == dtypes[0]
        _assert_right(factor, _true(delta, features), 1e3 * torch.finfo(dtypes[0]).eps)


def test_range_of_sums() -> None:
    assert in_range(torch.tensor([0.0, 1.0]))
    for value in (1e-30, 1e30, float("inf"), float("nan"), 0.0):
        assert not in_range(torch.tensor([value, 0.0]))
    assert square_sum(torch.tensor([1e-30, 2e-30])).dtype == torch.float64
    assert float(square_sum(torch.tensor([3e25, 4e25]))) == pytest.approx(25e50, rel=1e-6)
    assert float(square_sum(torch.zeros(3))) == 0


def test_an_order_puts_the_axes_where_the_parameter_has_them() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    features = torch.randn(3, 4, 5, 7, generator=generator, dtype=torch.float64)
    formed = torch.einsum("kbgto,bgti->kbiog", delta, features)
    factor = Outer(delta, Features(features), order=Order((4, 6, 7), (2, 1, 0)))
    torch.testing.assert_close(factor.rows(), formed.flatten(2))
    torch.testing.assert_close(factor.summed(), formed.sum(1).flatten(1))
    torch.testing.assert_close(factor.squared_norms(), formed.square().sum((2, 3, 4)))
    assert factor.layout != Outer(delta, Features(features)).layout


def test_long_sequences_of_words_are_summed_by_word() -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 40, (3, 100), generator=generator)
    delta = torch.randn(2, 3, 1, 100, 4, generator=generator, dtype=torch.float64)
    factor = Outer(delta, Lookup(index, 5000), transposed=True)
    expected = factor.rows().square().sum(2)
    torch.testing.assert_close(factor.squared_norms(), expected)
    torch.testing.assert_close(factor._squares_by_gram()[0], expected)
