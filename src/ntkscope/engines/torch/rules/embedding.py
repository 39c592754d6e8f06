"""Embeddings: linear maps of one-hot features, which stay indices."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Outer
from ntkscope.engines.torch.gradients.sides import Lookup
from ntkscope.engines.torch.rules.base import Arguments, rule_of

aten = torch.ops.aten


@rule_of(
    aten.embedding.default,
    parameters=("weight",),
    captures=("indices",),
    applies=lambda a: not a.get("scale_grad_by_freq", False),
)
def _embedding(arguments: Arguments, delta: Tensor, name: str) -> Outer:
    index = arguments["indices"]
    probe_side = delta.reshape(*delta.shape[:2], 1, -1, delta.shape[-1])
    flat = index.reshape(index.shape[0], -1)
    padding = arguments.get("padding_idx", -1)
    if padding >= 0:
        probe_side = probe_side * (flat != padding)[None, :, None, :, None]
    return Outer(probe_side, Lookup(flat, arguments["weight"].shape[0]), transposed=True)
