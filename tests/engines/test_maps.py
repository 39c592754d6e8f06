"""A model's J, Jᵀ and K as estimators see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ntkscope.engines.torch.maps import ForwardMap, KernelMap, ReverseMap
from ntkscope.operators.probes import sphere_probes
from ntkscope.operators.space import Map
from zoo import BY_NAME

MAPS = [KernelMap, ReverseMap, ForwardMap]


def _matrix(kind: type) -> torch.Tensor:
    dense = BY_NAME["mlp"].dense()
    return {KernelMap: dense.kernel, ReverseMap: dense.jacobian.T, ForwardMap: dense.jacobian}[kind]


@pytest.fixture(params=MAPS, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest) -> tuple[Map, torch.Tensor]:
    return request.param(BY_NAME["mlp"].ntk().engine.jacobian), _matrix(request.param)


def test_products(pair: tuple[Map, torch.Tensor]) -> None:
    operator, matrix = pair
    block = torch.randn(matrix.shape[1], 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert operator.shape == tuple(matrix.shape)
    torch.testing.assert_close(operator.apply(block), matrix @ block, rtol=1e-9, atol=1e-9)


def test_identity_and_probes(pair: tuple[Map, torch.Tensor]) -> None:
    operator, matrix = pair
    columns = matrix.shape[1]
    torch.testing.assert_close(operator.identity(2, 5), torch.eye(columns, dtype=torch.float64)[:, 2:5])
    probes = operator.probes(3, 7, seed=1, stream=2)
    assert probes.dtype == torch.float64
    assert np.array_equal(probes.numpy(), sphere_probes(columns, 3, 7, seed=1, stream=2))


def test_grams_are_in_float64_whatever_the_dtype() -> None:
    operator = KernelMap(BY_NAME["mlp"].ntk(dtype=torch.bfloat16).engine.jacobian)
    block = torch.full((12, 2), 1.5)
    assert operator.gram(block, block).dtype == np.float64
    assert operator.inner(block, block).tolist() == [27.0, 27.0]
    assert operator.epsilon == torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(
    ("kind", "expected"), [(KernelMap, (4, 4, 4)), (ReverseMap, (0, 4, 0)), (ForwardMap, (0, 0, 4))]
)
def test_costs(kind: type, expected: tuple[int, int, int]) -> None:
    operator = kind(BY_NAME["mlp"].ntk().engine.jacobian)
    operator.apply(operator.probes(0, 4, seed=0, stream=0))
    (ledger,) = operator.ledgers
    assert (ledger.products, ledger.vjps, ledger.jvps) == expected
