"""Per-sample parameter gradients in factored form: their norms, inner products and rows.

A factor is the gradient of one parameter for k probes and B samples. For a linear map
used at positions t, probe i and sample b it is G_ib = Σ_t δ_ibt a_btᵀ, so that its norm
and inner products need only those of δ and a, and G_ib is formed only where that is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ntkscope.engines.torch.gradients.base import Direct, Factor
from ntkscope.engines.torch.gradients.mixed import Mixed
from ntkscope.engines.torch.gradients.outer import Order, Outer
from ntkscope.engines.torch.gradients.sides import Features, side_by_side

__all__ = [
    "Direct",
    "Factor",
    "Mixed",
    "Order",
    "Outer",
    "add_rows",
    "add_uses",
    "concat_positions",
    "stack_features",
]


def add_uses(factors: Sequence[Factor]) -> Factor:
    """The sum of several uses of one parameter: as outer products where all are, else as rows."""
    outers = [factor for factor in factors if isinstance(factor, Outer)]
    if len(outers) == len(factors):
        layouts: dict[object, list[Outer]] = {}
        for factor in outers:
            layouts.setdefault(factor.layout, []).append(factor)
        alike = sorted(map(concat_positions, layouts.values()), key=lambda factor: factor.transposed)
        mixed = Mixed.of(*alike) if len(alike) == 2 else None
        if len(alike) == 1 or mixed is not None:
            return mixed or alike[0]
    return add_rows(factors)


def concat_positions(factors: Sequence[Outer]) -> Outer:
    """The sum of several uses of one parameter, as outer products: their positions side by side."""
    if len(factors) == 1:
        return factors[0]
    probe_side = torch.cat([factor.probe_side for factor in factors], dim=3)
    sample_side = side_by_side([factor.sample_side for factor in factors], probe_side.dtype)
    return replace(factors[0], probe_side=probe_side, sample_side=sample_side)


def add_rows(factors: Sequence[Factor]) -> Direct:
    """The sum of several uses of one parameter of any form."""
    return Direct(torch.stack([factor.rows() for factor in factors]).sum(0))


def stack_features(factors: Sequence[Outer]) -> Outer:
    """Several parameters with the same δ (a weight and its bias) as one: their features side by side."""
    dense = torch.cat([factor.sample_side.dense(factor.dtype) for factor in factors], dim=3)
    return Outer(factors[0].probe_side, Features(dense))
