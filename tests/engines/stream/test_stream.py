"""Data that streams: the kernel of the whole set, equal to that of one batch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ntkscope import NTK
from ntkscope.data import inputs_of
from ntkscope.engines.torch.samples.probed import ProbedGradients
from ntkscope.engines.torch.stream.batches import Batches, Reader

SAMPLES, BATCH = 23, 5


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(SAMPLES, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def loader(x: Tensor, **options: Any) -> Any:
    return DataLoader(TensorDataset(x, torch.zeros(len(x))), **{"batch_size": BATCH, **options})


def later(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.sin(parameter * 7))
    return model


class Runs:
    """An iterable whose passes are given one by one; the last one is repeated."""

    def __init__(self, *passes: Any) -> None:
        self.passes = list(passes)

    def __iter__(self) -> Iterator[Any]:
        given = self.passes[0] if len(self.passes) == 1 else self.passes.pop(0)
        for batch in given:
            if isinstance(batch, Exception):
                raise batch
            yield batch


def test_exact_numbers_are_those_of_one_batch(model: nn.Module, x: Tensor) -> None:
    streamed, whole = NTK(model, loader(x)), NTK(model, x)
    assert (streamed.n, streamed.n_params, streamed.output_shape) == (69, 51, (SAMPLES, 3))
    torch.testing.assert_close(streamed.state, whole.state, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(streamed.to_dense(), whole.to_dense(), rtol=1e-12, atol=1e-12)
    later(model)
    others = streamed.at(model), whole.at(model)
    for name in ("trace", "frobenius_norm", "effective_rank"):
        ours, theirs = (getattr(ntk, name)(method="exact") for ntk in (streamed, whole))
        assert ours.value == pytest.approx(theirs.value, rel=1e-9)
        assert ours.stderr == 0
    aligned = [a.alignment(b, method="exact").value for a, b in zip((streamed, whole), others, strict=True)]
    assert aligned[0] == pytest.approx(aligned[1], rel=1e-9)


def test_a_small_budget_reads_the_data_again(model: nn.Module, x: Tensor) -> None:
    exact = NTK(model, x).frobenius_norm(method="exact").value
    tight = NTK(model, loader(x), memory=1 << 12)
    assert tight.frobenius_norm(method="exact").value == pytest.approx(exact, rel=1e-9)


def test_the_snapshot_stays(model: nn.Module, x: Tensor) -> None:
    streamed = NTK(model, loader(x))
    before = NTK(model, x).trace(method="exact").value
    later(model)
    assert streamed.trace(method="exact").value == pytest.approx(before, rel=1e-9)


def test_products(model: nn.Module, x: Tensor) -> None:
    streamed, whole = NTK(model, loader(x)), NTK(model, x)
    z = torch.randn(69, 2, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    for ours, theirs in ((streamed @ z, whole @ z), (streamed.vjp(z), whole.vjp(z))):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert (streamed.cost.vjps, streamed.cost.jvps) == (4, 2)


def test_random_probes_of_samples_are_those_of_one_batch(model: nn.Module, x: Tensor) -> None:
    ours, theirs = (
        NTK(model, data).trace(method="per-sample", products=3, seed=4) for data in (loader(x), x)
    )
    assert ours.value == pytest.approx(theirs.value, rel=1e-9)
    assert ours.stderr == pytest.approx(theirs.stderr, rel=1e-6)
    assert ours.cost.vjps == 3


def test_another_axis_of_samples(model: nn.Module) -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mT).mT

    x = torch.randn(4, 7, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    batches = Runs([x[:, :3], x[:, 3:6], x[:, 6:]])
    streamed = NTK(Swapped(), batches, batch_dim=1)
    assert streamed.output_shape == (3, 7)
    torch.testing.assert_close(streamed.to_dense(), NTK(Swapped(), x, batch_dim=1).to_dense())


def test_the_ring_is_within_its_error_bar_for_data_in_the_order_of_its_classes(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    centres = 3 * torch.randn(6, 4, dtype=torch.double, generator=generator)
    x = centres.repeat_interleave(24, 0)
    x = x + 0.1 * torch.randn(x.shape, dtype=torch.double, generator=generator)
    exact = NTK(model, x).frobenius_norm(method="exact").value
    streamed = NTK(model, loader(x, batch_size=12))
    found = [streamed.frobenius_norm(method="per-sample", products=3, seed=seed) for seed in range(24)]
    values = np.array([one.value for one in found])
    spread = np.sqrt(np.mean((values - exact) ** 2))
    assert abs(values.mean() - exact) < 4 * spread / np.sqrt(len(values))
    shown = np.sqrt(np.mean([(one.stderr or 0) ** 2 for one in found]))
    assert 0.6 * spread < shown < 3 * spread


def test_two_batches_of_gradients_at_a_time(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0
    add = ProbedGradients.add

    def counted(self: ProbedGradients, signs: Any) -> None:
        nonlocal most
        add(self, signs)
        gc.collect()
        # What the cuts are made of dies with the batch's own gradients.
        alive.append(weakref.ref(self._jacobian))
        most = max(most, sum(one() is not None for one in alive))

    monkeypatch.setattr(ProbedGradients, "add", counted)
    NTK(model, loader(x), memory=1 << 12).frobenius_norm(method="per-sample", products=2)
    assert len(alive) > BATCH
    assert most <= 2


# Passes that bring other data.


def test_a_loader_that_shuffles(model: nn.Module, x: Tensor) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"batch 0 of the DataLoader has other values.*pass shuffle=False"):
        NTK(model, loader(x, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pass_that_ends_early(model: nn.Module, x: Tensor) -> None:
    batches = list(x.split(BATCH))
    data = Runs(batches, batches[:1], batches[:3])
    with pytest.raises(
        ValueError, match=r"the Runs ended after 3 batches.* had 5 in the first; pass one that"
    ):
        NTK(model, data).trace(method="exact")


def test_a_pass_that_goes_on(model: nn.Module, x: Tensor) -> None:
    batches = list(x.split(BATCH))
    data = Runs(batches[:3], batches)
    with pytest.raises(ValueError, match=r"the Runs goes on after 3 batches in a later pass"):
        NTK(model, data).trace(method="exact")


def test_a_loader_that_fails(model: nn.Module, x: Tensor) -> None:
    data = Runs([x[:5], KeyError("no such file")])
    with pytest.raises(
        RuntimeError, match=r"the Runs failed at batch 1 of pass 1 \(KeyError: 'no such file'\)"
    ):
        NTK(model, data)


def test_what_is_no_stream_of_batches(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"can be run only once.*pass the DataLoader itself"):
        NTK(model, iter([x]))
    with pytest.raises(ValueError, match=r"the Runs yields no batch"):
        NTK(model, Runs([]))
    with pytest.raises(ValueError, match=r"data that streams needs samples that are treated on their own"):
        NTK(model, loader(x), batch_dim=None)
    with pytest.raises(ValueError, match=r"different inputs \(one comes in batches and one at once\)"):
        NTK(model, loader(x)).alignment(NTK(model, x))
    with pytest.raises(
        ValueError, match=r"a fingerprint is not there for data that streams, found 5 batches"
    ):
        NTK(model, loader(x)).fingerprint()
    with pytest.raises(NotImplementedError, match=r"use method='per-sample', or pass one batch"):
        NTK(model, loader(x)).trace(method="per-sample-forward")


def test_other_data_is_not_compared(model: nn.Module, x: Tensor) -> None:
    changed = x.clone()
    changed[-1] += 1
    with pytest.raises(ValueError, match=r"1 of 5 batches differ, the first is batch 4"):
        NTK(model, loader(x)).alignment(NTK(model, loader(changed)))


def test_what_a_batch_stands_for() -> None:
    assert inputs_of(["x"], lambda a: a) == "x"
    assert inputs_of((("a", "b"), "y"), lambda a, b: a) == ("a", "b")
    assert inputs_of({"a": 1}, lambda a: a) == {"a": 1}
    with pytest.raises(
        TypeError, match=r"may be targets or an input; yield \(\(x,\), y\) for the first alone"
    ):
        inputs_of(("a", "b"), lambda a, mask=None: a)
    with pytest.raises(TypeError, match=r"yields a tuple of 3, expected inputs, a pair"):
        inputs_of(("a", "b", "c"), lambda a: a)


def test_a_reader_goes_back_to_the_start(x: Tensor) -> None:
    data = Batches(Runs(list(x.split(BATCH))), lambda x: x)
    batches = list(data.first_pass())
    reader = Reader(data)
    for number in (0, 1, 1, 4, 2, 3):
        assert torch.equal(reader.get(number), batches[number])
