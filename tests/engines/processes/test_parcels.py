"""Values with tensors in them survive being taken apart."""

from __future__ import annotations

import pytest
import torch

from ntkscope.engines.torch.gradients.factors import Direct, Mixed, Outer
from ntkscope.engines.torch.gradients.sides import Features, Lookup
from ntkscope.engines.torch.processes.parcels import pack, unpack
from ntkscope.engines.torch.samples.tiles import RowBlock

CPU = torch.device("cpu")


def _outer(side: Features | Lookup) -> Outer:
    return Outer(torch.randn(2, 3, 1, 4, 5), side)


@pytest.mark.parametrize(
    "factor",
    [
        Direct(torch.randn(2, 3, 4).to(torch.bfloat16)),
        _outer(Features(torch.randn(3, 1, 4, 6))),
        _outer(Lookup(torch.arange(12).reshape(3, 4), 20)),
        Mixed(_outer(Features(torch.randn(3, 1, 4, 6))), _outer(Features(torch.randn(3, 1, 4, 6)))),
    ],
)
def test_factors_arrive_as_they_were(factor: Direct | Outer | Mixed) -> None:
    block = RowBlock(torch.arange(6).reshape(2, 3), [factor])
    parts = pack([block], CPU)
    assert all(part.dtype == torch.uint8 and part.dim() == 1 for part in parts)
    ((index, factors),) = [(b.index, b.factors) for b in unpack(parts)]
    assert torch.equal(index, block.index)
    assert torch.equal(factors[0].rows(), factor.rows())


def test_views_and_single_numbers_arrive_whole() -> None:
    value = {
        "view": torch.arange(12.0).reshape(3, 4).T[1:],
        "number": torch.tensor(2.5),
        "none": torch.empty(0, 3),
    }
    found = unpack(pack(value, CPU))
    assert found.keys() == value.keys()
    assert all(torch.equal(found[key], value[key]) for key in value)
