"""``squeeze()`` without an axis keeps the samples' axis of a single sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agreement import agree, random
from ntkscope.engines.torch.samples.squeezes import Squeezes
from zoo import Function


def _pooled(model: nn.Module, x: Tensor) -> Tensor:
    return model.head(F.adaptive_avg_pool2d(model.conv(x), 1).squeeze())


def _by_function(model: nn.Module, x: Tensor) -> Tensor:
    return model.head(torch.squeeze(F.adaptive_avg_pool2d(model.conv(x), 1)))


def _twice(model: nn.Module, x: Tensor) -> Tensor:
    pooled = F.adaptive_avg_pool2d(model.conv(x), 1).squeeze().squeeze()
    return model.head(pooled)[:, :1].squeeze()


def _in_place(model: nn.Module, x: Tensor) -> Tensor:
    return model.head(F.adaptive_avg_pool2d(model.conv(x), 1).squeeze_())


@pytest.mark.parametrize("forward", [_pooled, _by_function, _twice, _in_place])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_pooled_head(forward: Callable[[nn.Module, Tensor], Tensor], batch: int) -> None:
    if batch == 1 and forward is _twice:
        pytest.skip("of one sample the model itself has no such axis")
    model = Function(forward, conv=nn.Conv2d(2, 4, 3), head=nn.Linear(4, 3)).double()
    agree(model, random(batch, 2, 5, 5))


def test_what_is_dropped_is_seen_and_can_be_told() -> None:
    with Squeezes() as seen:
        assert torch.ones(3, 1, 1).squeeze().shape == (3,)
        assert torch.ones(3, 1, 1).squeeze(1).shape == (3, 1)
    assert seen.found == [(3, (1, 2))]
    with Squeezes(seen.found):
        assert torch.ones(1, 1, 1).squeeze().shape == (1,)
        # Beyond what was told, and where it does not fit, as ever.
        assert torch.ones(1, 1, 1).squeeze().shape == ()
    with Squeezes([(3, ()), (2, (0,))]):
        assert torch.ones(1, 2, 1).squeeze().shape == (1, 2, 1)
        assert torch.ones(1, 2, 1).squeeze().shape == (2,)
