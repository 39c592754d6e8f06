"""Strata of a sample's outputs: unbiased, less noise behind a ReLU, never signs in disguise."""

from __future__ import annotations

import torch
from torch import nn

from ntkscope import NTK
from ntkscope.engines.torch.samples.strata import on_spheres, strata_of


def _relu_net() -> NTK:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 40), nn.ReLU()).double()
    return NTK(model, torch.randn(12, 6, dtype=torch.float64))


def test_each_stratum_has_its_length() -> None:
    first = torch.zeros(3, 10, dtype=torch.bool)
    first[0, :4] = first[1, 2:8] = True
    z = torch.randn(5, 3, 10, dtype=torch.float64)
    scales = on_spheres(z, first)
    assert torch.equal(scales, torch.ones(5, 3, dtype=torch.float64))
    squares = z.square()
    torch.testing.assert_close(squares[:, 0, :4].sum(1), torch.full((5,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(squares[:, 1, 2:8].sum(1), torch.full((5,), 6.0, dtype=torch.float64))
    torch.testing.assert_close(squares.sum(2), torch.full((5, 3), 10.0, dtype=torch.float64))


def test_strata_of_a_few_outputs_are_none() -> None:
    """On three coordinates or one a sphere tells as little as signs do."""
    first = torch.zeros(3, 10, dtype=torch.bool)
    first[0, :3] = True
    first[1, :7] = True
    assert strata_of(first) is None
    first[2, :5] = True
    kept = strata_of(first)
    assert kept is not None
    assert kept.sum(1).tolist() == [0, 0, 5]


def test_without_strata_the_squares_are_scaled() -> None:
    z = torch.randn(2, 3, 4)
    before = z.clone()
    scales = on_spheres(z, None)
    assert torch.equal(z, before)
    # To the digits of the probes themselves.
    torch.testing.assert_close(scales, 4 / before.double().square().sum(2), rtol=5e-7, atol=0)


def test_outputs_that_are_zero_make_less_noise() -> None:
    ntk = _relu_net()
    samples: list[float] = []
    for seed in range(100):
        samples += list(ntk.trace("per-sample", products=2, seed=seed).samples)
    found, exact = torch.tensor(samples, dtype=torch.float64), ntk.trace("exact").value
    stderr = float(found.std()) / len(samples) ** 0.5
    assert abs(float(found.mean()) - exact) < 4 * stderr
    # One sphere for all 40 outputs, by the formula.
    blocks = ntk.to_dense().reshape(12, 40, 12, 40).diagonal(dim1=0, dim2=2).movedim(2, 0)
    traces = blocks.diagonal(dim1=1, dim2=2).sum(1)
    whole = 2 * 40 / 42 * float((blocks.square().sum((1, 2)) - traces**2 / 40).sum())
    assert float(found.var()) < whole / 2
