"""Linear maps: δ has shape (k, B, ..., O), the input (B, ..., I), and G = Σ_t δ_t ⊗ a_t."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Outer
from ntkscope.engines.torch.gradients.sides import Features, ones
from ntkscope.engines.torch.rules.base import Arguments, rule_of

aten = torch.ops.aten


@rule_of(
    aten.linear.default,
    parameters=("weight", "bias"),
    captures=("input",),
    # A weight of one axis leaves the output without a features' axis.
    applies=lambda a: a["weight"].dim() == 2,
    joint=True,
    positions=True,
)
def _linear(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    probe_side = _positions(delta, 2)
    if name == "bias":
        return Outer(probe_side, ones(probe_side))
    return Outer(probe_side, Features(_positions(arguments["input"], 1)))


@rule_of(
    aten.matmul.default,
    parameters=("other",),
    captures=("self",),
    applies=lambda a: a["other"].dim() == 2 and a["self"].dim() >= 2,
)
@rule_of(aten.mm.default, parameters=("mat2",), captures=("self",))
def _matmul(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    # x @ W with W of shape (I, O).
    return Outer(_positions(delta, 2), Features(_positions(arguments["self"], 1)), transposed=True)


def _positions(x: Tensor, leading: int) -> Tensor:
    """Flattens what stands between the leading axes and the features: (..., T, features)."""
    return x.reshape(*x.shape[:leading], -1, x.shape[-1]).unsqueeze(leading)
