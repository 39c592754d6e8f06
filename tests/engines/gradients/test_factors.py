"""Factors: norms, rows, sums and inner products against gradients formed by plain einsum."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import (
    Direct,
    Factor,
    Mixed,
    Outer,
    add_rows,
    add_uses,
    concat_positions,
    stack_features,
)
from ntkscope.engines.torch.gradients.sides import Features, Lookup

PROBES, BATCH = 3, 2

# (groups, positions, outputs, features): one position, Gram matrices cheaper, gradients cheaper.
SHAPES = [(1, 1, 2, 5), (2, 1, 3, 2), (1, 2, 4, 5), (1, 6, 2, 3), (2, 4, 5, 2), (3, 2, 4, 6)]


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _outer(shape: tuple[int, int, int, int], transposed: bool = False, seed: int = 0, **sizes: int) -> Outer:
    groups, positions, outputs, width = shape
    probes, batch = sizes.get("probes", PROBES), sizes.get("batch", BATCH)
    delta = _random(probes, batch, groups, positions, outputs, seed=seed)
    return Outer(delta, Features(_random(batch, groups, positions, width, seed=seed + 1)), transposed)


def _lookup(positions: int = 4, size: int = 5, outputs: int = 3, seed: int = 0, **sizes: int) -> Outer:
    probes, batch = sizes.get("probes", PROBES), sizes.get("batch", BATCH)
    index = torch.randint(0, size, (batch, positions), generator=torch.Generator().manual_seed(seed))
    return Outer(_random(probes, batch, 1, positions, outputs, seed=seed), Lookup(index, size), True)


def _features(factor: Outer) -> Tensor:
    """a, dense: (B, groups, T, I)."""
    side = factor.sample_side
    if isinstance(side, Lookup):
        return torch.nn.functional.one_hot(side.index, side.size).double().unsqueeze(1)
    return side.values


def _formed(factor: Outer) -> Tensor:
    """Σ_t δ_t ⊗ a_t, laid out as the parameter is: (k, B, P)."""
    order = "kbgio" if factor.transposed else "kbgoi"
    formed = torch.einsum(f"kbgto,bgti->{order}", factor.probe_side, _features(factor))
    return formed.flatten(2)


OUTERS = {
    **{
        f"{'x'.join(map(str, shape))}{'-transposed' * transposed}": _outer(shape, transposed)
        for shape, transposed in itertools.product(SHAPES, (False, True))
    },
    "lookup": _lookup(),
    "lookup-one-position": _lookup(positions=1),
    "lookup-many-positions": _lookup(positions=9, size=2, outputs=1),
}
each_outer = pytest.mark.parametrize("factor", OUTERS.values(), ids=OUTERS)


@each_outer
def test_an_outer_product_is_its_formed_gradient(factor: Outer) -> None:
    formed = _formed(factor)
    assert factor.probes == PROBES
    assert factor.row_size() == formed.shape[2]
    torch.testing.assert_close(factor.rows(), formed)
    torch.testing.assert_close(factor.summed(), formed.sum(1))
    torch.testing.assert_close(factor.squared_norms(), (formed**2).sum(2))


@each_outer
def test_a_tile_holds_inner_products_of_formed_gradients(factor: Outer) -> None:
    groups, positions, outputs, width = *factor.probe_side.shape[2:], factor.sample_side.width
    other = (
        _lookup(positions, width, outputs, seed=7, probes=4, batch=3)
        if isinstance(factor.sample_side, Lookup)
        else _outer((groups, positions, outputs, width), factor.transposed, seed=7, probes=4, batch=3)
    )
    expected = torch.einsum("kbp,jcp->kbjc", _formed(factor), _formed(other))
    before = torch.ones(PROBES, BATCH, 4, 3, dtype=torch.float64)
    total = before.clone()
    factor.add_tile(other, total)
    torch.testing.assert_close(total, before + expected)
    total = torch.zeros_like(before)
    Direct(_formed(factor)).add_tile(Direct(_formed(other)), total)
    torch.testing.assert_close(total, expected)


def test_tiles_of_uses_with_other_numbers_of_positions() -> None:
    left, right = _outer((2, 3, 2, 4)), _outer((2, 5, 2, 4), seed=5)
    total = torch.zeros(PROBES, BATCH, PROBES, BATCH, dtype=torch.float64)
    left.add_tile(right, total)
    torch.testing.assert_close(total, torch.einsum("kbp,jcp->kbjc", _formed(left), _formed(right)))


@each_outer
def test_a_tile_of_two_forms_is_that_of_one(factor: Outer) -> None:
    direct: Factor = Direct(factor.rows())
    expected = torch.einsum("kbp,jcp->kbjc", _formed(factor), _formed(factor))
    for left, right in ((factor, direct), (direct, factor)):
        total = torch.zeros_like(expected)
        left.add_tile(right, total)
        torch.testing.assert_close(total, expected)


@each_outer
def test_a_factor_says_what_it_takes(factor: Outer) -> None:
    side = factor.sample_side
    kept = side.index if isinstance(side, Lookup) else _features(factor)
    assert factor.nbytes == factor.probe_side.nbytes + kept.nbytes
    assert Direct(factor.rows()).nbytes == 8 * PROBES * BATCH * factor.row_size()
    for form in (factor, Direct(factor.rows())):
        assert (form.dtype, form.device) == (torch.float64, torch.device("cpu"))


@each_outer
@pytest.mark.parametrize("rows", [1, 10_000])
def test_settling_changes_the_form_alone(factor: Outer, rows: int) -> None:
    settled = factor.settled(rows)
    torch.testing.assert_close(settled.rows(), _formed(factor))
    assert settled.settled(rows).rows().shape == settled.rows().shape


def test_gradients_are_formed_where_that_is_cheaper() -> None:
    many_positions, one_position = _outer((1, 30, 2, 2)), _outer((1, 1, 20, 20))
    assert isinstance(many_positions.settled(1000), Direct)
    assert one_position.settled(1000) is one_position


def test_direct_factors() -> None:
    values = _random(PROBES, BATCH, 7)
    factor = Direct(values)
    assert (factor.probes, factor.row_size()) == (PROBES, 7)
    assert factor.settled(3) is factor
    assert factor.rows() is values
    torch.testing.assert_close(factor.summed(), values.sum(1))
    torch.testing.assert_close(factor.squared_norms(), (values**2).sum(2))


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4, 5)], ids=str)
def test_gradients_have_one_axis_for_the_parameter(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(probes, samples, entries\), found \(3, 2.*flatten\(2\)"):
        Direct(_random(*shape))


# Sums of uses.


@pytest.mark.parametrize("transposed", [False, True])
def test_uses_side_by_side_are_their_sum(transposed: bool) -> None:
    uses = [_outer((2, positions, 3, 2), transposed, seed=positions) for positions in (1, 4, 2)]
    expected = sum(_formed(use) for use in uses)
    joined = concat_positions(uses)
    torch.testing.assert_close(joined.rows(), expected)
    torch.testing.assert_close(joined.squared_norms(), (expected**2).sum(2))
    torch.testing.assert_close(add_rows(list(uses)).rows(), expected)
    assert concat_positions(uses[:1]) is uses[0]


def test_uses_are_added_as_outer_products_where_they_agree_in_layout() -> None:
    first, second, turned = _outer((1, 2, 3, 3)), _outer((1, 1, 3, 3), seed=4), _outer((1, 2, 3, 3), True)
    expected = _formed(first) + _formed(second)
    joined = add_uses([first, second])
    assert isinstance(joined, Outer)
    torch.testing.assert_close(joined.rows(), expected)
    for other in (turned, Direct(_formed(turned))):
        mixed = add_uses([first, second, other])
        assert isinstance(mixed, Mixed if isinstance(other, Outer) else Direct)
        torch.testing.assert_close(mixed.rows(), expected + _formed(turned))


def test_uses_of_a_table_stay_indices() -> None:
    uses = [_lookup(positions=2), _lookup(positions=3, seed=4)]
    joined = concat_positions(uses)
    assert isinstance(joined.sample_side, Lookup)
    torch.testing.assert_close(joined.rows(), _formed(uses[0]) + _formed(uses[1]))


def test_a_table_that_is_also_multiplied_with() -> None:
    uses = [_lookup(), _outer((1, 2, 3, 5), transposed=True, seed=3)]
    expected = _formed(uses[0]) + _formed(uses[1])
    torch.testing.assert_close(concat_positions(uses).rows(), expected)
    torch.testing.assert_close(concat_positions(uses[::-1]).rows(), expected)


def test_a_weight_and_its_bias_as_one() -> None:
    weight = _outer((2, 3, 4, 2))
    bias = Outer(weight.probe_side, Features(torch.ones(BATCH, 2, 3, 1, dtype=torch.float64)))
    both = stack_features([weight, bias])
    expected = (_formed(weight) ** 2).sum(2) + (_formed(bias) ** 2).sum(2)
    torch.testing.assert_close(both.squared_norms(), expected)
    assert both.row_size() == weight.row_size() + bias.row_size()


# Precision.


@pytest.mark.parametrize("shape", [(1, 1, 4, 300), (1, 2, 300, 300), (1, 40, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_it_is_summed(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    exact = _outer(shape)
    scaled = [(20 * t).to(dtype) for t in (exact.probe_side, _features(exact))]
    # Squared norms beyond 65,504 are infinite in float16.
    factor = Outer(scaled[0], Features(scaled[1]))
    formed = _formed(Outer(scaled[0].double(), Features(scaled[1].double())))
    norms = (formed**2).sum(2)
    assert float(norms.max()) > 65_504
    assert factor.squared_norms().dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(factor.squared_norms().double(), norms, rtol=0.02, atol=0)
    for form in (factor, Direct(formed.to(dtype))):
        total = torch.zeros(PROBES, BATCH, PROBES, BATCH)
        form.add_tile(form, total)
        own = total.flatten(2).flatten(0, 1).diagonal().reshape(PROBES, BATCH).double()
        torch.testing.assert_close(own, norms, rtol=0.02, atol=0)
