"""Rules of linear maps against the dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agreement import each_alone, random
from zoo import Function

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 4), (5, 3)),
    "linear-no-bias": (lambda: nn.Linear(3, 4, bias=False), (5, 3)),
    "linear-sequence": (lambda: nn.Linear(3, 2), (2, 4, 3)),
    "linear-long-sequence": (lambda: nn.Linear(2, 1), (2, 9, 2)),
    "linear-images": (lambda: nn.Linear(3, 2), (2, 2, 3, 3)),
    "matmul": (lambda: Function(lambda m, x: x @ m.weight, weight=torch.randn(3, 4)), (5, 3)),
    "matmul-sequence": (lambda: Function(lambda m, x: x @ m.weight, weight=torch.randn(3, 2)), (2, 4, 3)),
    "mm": (lambda: Function(lambda m, x: torch.mm(x, m.weight), weight=torch.randn(3, 2)), (4, 3)),
    "transposed-view": (lambda: Function(lambda m, x: x @ m.weight.T, weight=torch.randn(4, 3)), (5, 3)),
    "transposed-matrix-view": (
        lambda: Function(lambda m, x: x @ m.weight.mT, weight=torch.randn(4, 3)),
        (5, 3),
    ),
    "reshaped": (
        lambda: Function(lambda m, x: F.linear(x, m.weight.view(4, 3)), weight=torch.randn(12)),
        (5, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_linear_maps(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    each_alone(build, random(*shape))
