"""Parts of a model that see no sample go back for every sample, which plans must know."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from inside import structure
from ntkscope import NTK
from ntkscope.ways.exact import OneHotSamples
from ntkscope.ways.per_sample import PerSample, PerSampleForward
from ntkscope.ways.plan import USUAL


class Operator(nn.Module):
    """A branch of every sample, and a trunk on places that all samples share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Linear(3, width)
        self.trunk = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.branch(x) @ self.trunk(places).T


def test_the_work_of_shared_parts_is_counted_for_every_sample() -> None:
    x, places, width = torch.randn(40, 3), torch.linspace(0, 1, 50)[:, None], 16
    ntk = NTK(Operator(width), (x, places), batch_dim=(0, None))
    elements = ntk.engine.function.forward_size.elements  # type: ignore[attr-defined]
    # Two layers and a tanh on 50 places, for 39 samples more.
    expected = 1 + 3 * 50 * width * 39 / elements
    assert structure(ntk).spread() == pytest.approx(expected, rel=1e-9)
    assert ntk.engine.sizes().spread == structure(ntk).spread()
    sizes = ntk.engine.sizes()
    together = dataclasses.replace(sizes, spread=1.0)
    for way in (PerSample(), PerSampleForward(), OneHotSamples()):
        assert way.seconds(sizes, USUAL, 0.001) > 2 * way.seconds(together, USUAL, 0.001)


def test_models_that_see_samples_throughout_share_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    assert NTK(model, torch.randn(10, 3)).engine.sizes().spread == 1
