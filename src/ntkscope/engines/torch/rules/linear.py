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
    joint=True,
    positions=True,
)
def _linear(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    # A weight of one axis leaves the output without a features' axis.
    probe_side = _positions(delta.unsqueeze(-1) if arguments["weight"].dim() == 1 else delta, 2)
    if name == "bias":
        return Outer(probe_side, ones(probe_side))
    return Outer(probe_side, Features(_positions(arguments["input"], 1)))


def _positions(x: Tensor, leading: int) -> Tensor:
    """Flattens what stands between the leading axes and the features: (..., T, features)."""
    return x.reshape(*x.shape[:leading], -1, x.shape[-1]).unsqueeze(leading)
