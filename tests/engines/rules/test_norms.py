"""Rules of norms against the dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from agreement import each_alone, random

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer-norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer-norm-sequence": (lambda: nn.LayerNorm(4), (2, 3, 4)),
    "layer-norm-two-axes": (lambda: nn.LayerNorm((3, 4)), (2, 2, 3, 4)),
    "layer-norm-no-bias": (lambda: nn.LayerNorm(4, bias=False), (3, 4)),
    "rms-norm": (lambda: nn.RMSNorm(4), (2, 3, 4)),
    "rms-norm-two-axes-eps": (lambda: nn.RMSNorm((3, 4), eps=0.1), (2, 3, 4)),
    "group-norm": (lambda: nn.GroupNorm(2, 4), (3, 4)),
    "group-norm-images": (lambda: nn.GroupNorm(2, 4, eps=0.1), (2, 4, 2, 3)),
    "batch-norm": (lambda: _eval(nn.BatchNorm1d(4)), (3, 4)),
    "batch-norm-sequence": (lambda: _eval(nn.BatchNorm1d(4)), (2, 4, 3)),
    "batch-norm-images": (lambda: _eval(nn.BatchNorm2d(4)), (2, 4, 2, 3)),
    "batch-norm-volumes": (lambda: _eval(nn.BatchNorm3d(2)), (2, 2, 2, 2, 2)),
}  # fmt: skip


def _eval(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer.eval()


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_norms(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    each_alone(build, random(*shape))
