"""Sample sides: Gram matrices and contractions, dense or by indices, against plain einsum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.sides import (
    Features,
    Lookup,
    SampleSide,
    ones,
    side_by_side,
    square_sum,
    widened,
)

BATCH = 2


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _lookup(positions: int, size: int, seed: int = 0) -> Lookup:
    generator = torch.Generator().manual_seed(seed)
    return Lookup(torch.randint(0, size, (BATCH, positions), generator=generator), size)


def _features(side: SampleSide) -> Tensor:
    """a, dense: (B, groups, T, features)."""
    if isinstance(side, Lookup):
        return (side.index.unsqueeze(2) == torch.arange(side.size)).double().unsqueeze(1)
    assert isinstance(side, Features)
    return side.values


# Fewer features than outputs, and more: contractions take either side first.
SIDES: dict[str, SampleSide] = {
    "one-position": Features(_random(BATCH, 1, 1, 5)),
    "few-features": Features(_random(BATCH, 1, 6, 2)),
    "groups": Features(_random(BATCH, 3, 2, 6)),
    "lookup": _lookup(4, 5),
    "lookup-one-position": _lookup(1, 5),
    "lookup-many-positions": _lookup(9, 2),
}
each_side = pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)


@each_side
def test_sizes(side: SampleSide) -> None:
    a = _features(side)
    assert (side.positions, side.width) == tuple(a.shape[2:])
    assert side.nbytes == (side.index if isinstance(side, Lookup) else a).nbytes
    torch.testing.assert_close(side.dense(torch.float64), a)


@each_side
def test_gram_matrices(side: SampleSide) -> None:
    a = _features(side)
    torch.testing.assert_close(side.own_gram().double(), a @ a.mT)
    torch.testing.assert_close(side.gram(side).double(), torch.einsum("bgti,cgui->bcgtu", a, a))


@each_side
@pytest.mark.parametrize("outputs", [1, 4])
def test_contraction_with_the_probes_side(side: SampleSide, outputs: int) -> None:
    a = _features(side)
    delta = _random(3, *a.shape[:3], outputs, seed=1)
    torch.testing.assert_close(side.contract(delta), torch.einsum("kbgto,bgti->kbgoi", delta, a))


@each_side
def test_samples_joined_are_one_with_all_positions(side: SampleSide) -> None:
    expected = torch.cat(list(_features(side)), dim=1).unsqueeze(0)
    torch.testing.assert_close(_features(side.joined()), expected)


def test_indices_and_dense_features_have_inner_products() -> None:
    looked_up, dense = _lookup(4, 5), Features(_random(3, 1, 4, 5))
    expected = torch.einsum("bgti,cgui->bcgtu", _features(looked_up), dense.values)
    torch.testing.assert_close(looked_up.gram(dense), expected)
    torch.testing.assert_close(dense.gram(looked_up), expected.permute(1, 0, 2, 4, 3))


def test_sides_side_by_side_stay_indices_if_all_of_them_are() -> None:
    first, second, dense = _lookup(2, 5), _lookup(3, 5, seed=1), Features(_random(BATCH, 1, 4, 5))
    joined = side_by_side([first, second], torch.float64)
    assert isinstance(joined, Lookup)
    torch.testing.assert_close(_features(joined), torch.cat([_features(first), _features(second)], 2))
    mixed = side_by_side([first, dense], torch.float64)
    torch.testing.assert_close(_features(mixed), torch.cat([_features(first), dense.values], 2))


def test_a_bias_has_a_one_at_every_position() -> None:
    side = ones(_random(3, BATCH, 2, 4, 5))
    torch.testing.assert_close(side.values, torch.ones(BATCH, 2, 4, 1, dtype=torch.float64))


# Precision.


def test_sums_of_squares_are_right_in_float32() -> None:
    x = torch.full((4096, 2048), 0.1)
    assert float(square_sum(x)) == pytest.approx(x.numel() * 0.1**2, rel=1e-6)


def test_half_precision_alone_is_widened() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(2, dtype=dtype)
        assert widened(x) is x
    for dtype in (torch.float16, torch.bfloat16):
        assert widened(torch.ones(2, dtype=dtype)).dtype == torch.float32


def test_compact_words_keep_the_inner_products_of_each_sample() -> None:
    index = torch.randint(0, 90, (5, 12), generator=torch.Generator().manual_seed(0))
    index[:, 3], index[:, 7] = index[:, 1], index[:, 1]
    side = Lookup(index, 1000)
    compact = side.compact()
    assert compact.width == 12
    assert torch.equal(compact.own_gram(), side.own_gram())
    assert Lookup(index, 8).compact().width == 8
