"""The population's effective rank against dense kernels, and over batches of all sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ntkscope import NTK
from ntkscope.runs import ring as rings
from ntkscope.runs import ring_sums
from ntkscope.runs.population import population_moments
from reference import dense
from zoo import INDEPENDENT, Case, each

Array = NDArray[np.float64]
SMALL = [case for case in INDEPENDENT if case.shared().n <= 200 and case.shared().engine.samples().batch > 1]


def sums(kernel: Array, index: Array) -> tuple[float, float]:
    """Σ_{b≠b'} t_b t_b' and Σ_{b≠b'} ‖K_bb'‖², entry by entry."""
    blocks = [[kernel[np.ix_(one, two)] for two in index] for one in index]
    top = bottom = 0.0
    for b, row in enumerate(blocks):
        for c, block in enumerate(row):
            if b != c:
                top += np.trace(blocks[b][b]) * np.trace(blocks[c][c])
                bottom += np.sum(block**2)
    return top, bottom


@each(SMALL)
def test_exact_over_the_zoo(case: Case) -> None:
    top, bottom = sums(case.dense().kernel.numpy(), case.shared().engine.samples().state_index())
    found = case.shared().effective_rank("exact", population=True)
    if bottom < 1e-12 * top:
        assert found.value > 1e9 or np.isnan(found.value)
        return
    assert found.value == pytest.approx(top / bottom, rel=1e-6)
    assert (found.stderr, found.quantity) == (0, "population_effective_rank")


def network(samples: int, outputs: int = 4) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, outputs)).double()
        return model, torch.randn(samples, 5).double()


def z_scores(seeds: int, samples: int = 12) -> tuple[float, float]:
    model, x = network(samples)
    ntk = NTK(model, x)
    truth = sums(dense(model, x).kernel.numpy(), ntk.engine.samples().state_index())
    values = []
    for seed in range(seeds):
        kept = ntk.fingerprint(2, seed)
        moments = population_moments(kept.products(), kept.ring, 2, kept.n // kept.batch)
        values.append((moments.value((0,)), moments.value((0, 0))))
    found = np.array(values)
    z = (found.mean(axis=0) - np.array(truth)) / (found.std(axis=0, ddof=1) / np.sqrt(seeds))
    return float(z[0]), float(z[1])


@pytest.mark.parametrize("samples", [12, 130])
def test_both_sums_are_unbiased(samples: int) -> None:
    assert all(abs(z) < 4 for z in z_scores(200, samples))


def test_the_check_finds_a_sample_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ring_sums.RingSums.__init__

    def kept(self: ring_sums.RingSums, ring: rings.Ring, count: int, probes: int, own: bool = True) -> None:
        right(self, ring, count, probes, True)

    monkeypatch.setattr(ring_sums.RingSums, "__init__", kept)
    assert abs(z_scores(100)[1]) > 4


@pytest.mark.parametrize("probes", [2, 4])
@pytest.mark.parametrize("samples", [20, 130])
def test_intervals_cover(samples: int, probes: int) -> None:
    model, x = network(samples)
    ntk = NTK(model, x)
    truth = ntk.effective_rank("exact", population=True).value
    held = []
    for seed in range(100):
        found = ntk.effective_rank("per-sample", products=probes, seed=seed, population=True)
        low, high = found.interval()
        held.append(low <= truth <= high)
        if seed == 0:
            assert found.cost.vjps == probes
            kept = ntk.fingerprint(probes).effective_rank(population=True)
            assert kept.value == pytest.approx(found.value, rel=1e-12)
            assert kept.stderr == pytest.approx(found.stderr, rel=1e-9)
    assert np.mean(held) >= 0.87


def test_does_not_depend_on_the_number_of_samples() -> None:
    """Means over many batches: today's effective rank grows with the batch, the population's does not."""
    model, x = network(400, outputs=1)

    def means(size: int) -> tuple[float, float]:
        parts = x.split(size)
        tops, bottoms, plain = [], [], []
        for part in parts:
            kernel = dense(model, part).kernel.numpy()
            top, bottom = sums(kernel, np.arange(size).reshape(size, 1))
            tops.append(top)
            bottoms.append(bottom)
            plain.append(np.trace(kernel) ** 2 / np.sum(kernel**2))
        return float(np.sum(tops) / np.sum(bottoms)), float(np.mean(plain))

    few, many = means(4), means(50)
    assert few[0] == pytest.approx(many[0], rel=0.05)
    assert many[1] > 1.5 * few[1]


def test_to_a_tolerance_and_auto() -> None:
    model, x = network(200, outputs=30)
    ntk = NTK(model, x)
    exact = ntk.effective_rank("exact", population=True)
    for method in ("auto", "per-sample"):
        found = ntk.effective_rank(method, population=True, rtol=0.02)  # type: ignore[arg-type]
        assert found.value == pytest.approx(exact.value, rel=0.06)


def test_bad_input() -> None:
    model, x = network(8)
    ntk = NTK(model, x)
    with pytest.raises(ValueError, match="unknown method 'sketch' for the population's effective rank"):
        ntk.effective_rank("sketch", population=True)
    with pytest.raises(ValueError, match="leave trace_method= out"):
        ntk.effective_rank(population=True, trace_method="exact")
    with pytest.raises(ValueError, match="needs samples that are treated on their own"):
        NTK(model, x, batch_dim=None).effective_rank(population=True)
    one = NTK(model, x[:1])
    with pytest.raises(ValueError, match="needs two samples or more, found 1"):
        one.effective_rank(population=True)
    with pytest.raises(ValueError, match="found one sample"):
        one.fingerprint().effective_rank(population=True)
