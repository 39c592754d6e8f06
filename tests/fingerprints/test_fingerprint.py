"""Fingerprints against dense kernels: every number, its error bar, and what must not be compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ntkscope import NTK, Estimate, Fingerprint, alignment_matrix, velocity
from ntkscope.fingerprints import take
from ntkscope.runs import ring as rings
from ntkscope.runs.sample_gram import sample_signs
from reference import Dense, alignment, dense
from zoo import INDEPENDENT, Case, each

SMALL = [case for case in INDEPENDENT if case.shared().n <= 200]


def mlp(seed: int = 0, width: int = 16, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4)).to(dtype)


def batch(samples: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator, dtype=torch.float64).to(dtype)


def moved(model: nn.Module, step: float, seed: int = 5) -> nn.Module:
    """A copy a small step away."""
    other = mlp()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(step * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return other


def distance_of(a: Dense, b: Dense) -> float:
    """½‖K/‖K‖ - K'/‖K'‖‖², which loses no digits."""
    difference = a.kernel / a.frobenius_norm - b.kernel / b.frobenius_norm
    return float((difference**2).sum()) / 2


def is_near(found: Estimate, truth: float, errors: float = 6.0) -> bool:
    assert found.stderr is not None
    return abs(found.value - truth) <= errors * found.stderr + 1e-9 * abs(truth)


def layer_of(parameter: str) -> str:
    """A parametrised weight is of the module that has it."""
    owner, inside, _ = parameter.partition(".parametrizations.")
    return owner if inside else parameter.rpartition(".")[0] or "self"


def naive_products(jacobian: torch.Tensor, index: torch.Tensor, found: Fingerprint) -> NDArray[np.float64]:
    """T of dense gradients, block by block around the ring."""
    ring, rows = found.ring, jacobian[index].numpy()
    signs = sample_signs(found.n, 0, found.probes, found.seed)[index.numpy()].astype(float)
    gradients = np.einsum("bsk,bsp->bkp", signs, rows)[ring.order]
    missing = -len(gradients) % ring.block
    blocks = np.pad(gradients, ((0, missing), (0, 0), (0, 0))).reshape(
        ring.blocks, ring.block, *gradients.shape[1:]
    )
    return np.stack(
        [
            np.einsum("usip,utjp->usitj", blocks, np.roll(blocks, -offset, axis=0))
            for offset in (0, *ring.offsets)
        ]
    )


@each(SMALL)
def test_holds_the_inner_products_of_every_architecture(case: Case) -> None:
    """Of the whole kernel, and of each layer's part of it."""
    kernel, jacobian = case.shared(), case.dense().jacobian
    index = kernel.engine.samples().jacobian.axes.state_index()
    whole, layered = (kernel.fingerprint(probes=3, seed=1, by=by) for by in (None, "layer"))
    expected = naive_products(jacobian, index, whole)
    close = {"rtol": 1e-9, "atol": 1e-9 * float(np.abs(expected).max())}
    np.testing.assert_allclose(whole.tiles[""], expected, **close)
    np.testing.assert_allclose(np.sum(list(layered.tiles.values()), axis=0), expected, **close)
    model, _ = case.make()
    named = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    parts = dict(
        zip([name for name, _ in named], jacobian.split([size for _, size in named], dim=1), strict=True)
    )
    assert set(layered.layers) <= {layer_of(name) for name in parts}
    for layer in {layer_of(name) for name in parts}:
        own = torch.cat([part for name, part in parts.items() if layer_of(name) == layer], dim=1)
        of_layer = naive_products(own, index, whole)
        np.testing.assert_allclose(layered.tiles.get(layer, np.zeros_like(expected)), of_layer, **close)


@each(["mlp", "gru", "self-attention", "tied-embedding", "conv2d-groups-stride-dilation"])
def test_every_number_and_its_error_bar(case: Case) -> None:
    one, two = case.dense(0), case.dense(1)
    first, second = (case.shared(seed).fingerprint(probes=8, seed=3) for seed in (0, 1))
    for found, truth in (
        (first.trace(), one.trace),
        (first.frobenius_norm(), one.frobenius_norm),
        (first.effective_rank(), one.effective_rank),
        (first.alignment(second), alignment(one, two)),
        (first.distance(second), distance_of(one, two)),
    ):
        assert is_near(found, truth), (found, truth)
    assert first.cost.vjps == 8


def test_equals_the_measurement_with_the_same_probes() -> None:
    """One estimator, whether its inner products are kept or not; a ring for many samples."""
    model, x = mlp(), batch(200)
    first, second = NTK(model, x), NTK(moved(model, 0.1), x)
    kept = [kernel.fingerprint(probes=2, seed=4) for kernel in (first, second)]
    assert kept[0].ring.missing > 0
    measured = first.measure([second], method="per-sample", products=4, seed=4)
    for name, found in (
        ("trace", kept[0].trace()),
        ("frobenius_norm", kept[0].frobenius_norm()),
        ("effective_rank", kept[0].effective_rank()),
        ("alignment", kept[0].alignment(kept[1])),
    ):
        expected = measured.alignment[0] if name == "alignment" else measured[name]
        assert found.value == pytest.approx(expected.value, rel=1e-12)
        assert found.stderr == pytest.approx(expected.stderr, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [20, 200])
def test_tiny_distances_are_resolved(samples: int, dtype: torch.dtype) -> None:
    """1e-3 to 1e-9, to a few percent, in float32 too; 1 - alignment alone knows no such digits."""
    model, x = mlp(), batch(samples)
    one = dense(model, x)
    start = NTK(mlp(dtype=dtype), x.to(dtype)).fingerprint()
    for step in (1e-2, 1e-3, 1e-4, 1e-5):
        other = moved(model, step)
        truth = distance_of(one, dense(other, x))
        found = start.distance(NTK(other.to(dtype), x.to(dtype)).fingerprint())
        assert is_near(found, truth, 4), (found, truth)
        assert found.relative_stderr is not None
        assert found.relative_stderr < (0.2 if step >= 1e-4 else 0.5)


def test_distance_is_one_less_the_alignment() -> None:
    x = batch(100)
    one, two = (NTK(mlp(seed), x).fingerprint(probes=3) for seed in range(2))
    far, near = one.distance(two), one.alignment(two)
    assert far.value == pytest.approx(1 - near.value, rel=1e-10)
    assert far.stderr == pytest.approx(near.stderr, rel=0.02)


def test_a_kernel_is_no_distance_from_itself() -> None:
    found = NTK(mlp(), batch(20)).fingerprint()
    same = found.distance(found)
    assert (same.value, found.alignment(found).value) == (0, pytest.approx(1))
    assert same.stderr is not None
    assert 0 < same.stderr < 1e-25
    assert found.alignment(found).cost == found.cost


def test_a_zero_kernel() -> None:
    model = mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model[2].bias.requires_grad_(False)
    zero = NTK(nn.Sequential(model), batch(10)).fingerprint()
    assert zero.trace().value == 0
    assert np.isnan(zero.distance(zero).value)
    assert "zero kernel" in zero.distance(zero).note
    assert np.isnan(zero.alignment(zero).value)


def test_layers_align_with_each_other_and_with_those_of_another_moment() -> None:
    model, x = mlp(), batch(30)
    before, after = (NTK(m, x).fingerprint(8, by="layer") for m in (model, moved(model, 0.3)))
    assert before.layers == after.layers == ("0", "2")
    rows = [dense(m, x).jacobian for m in (model, moved(model, 0.3))]
    first = [Dense(jacobian[:, : 7 * 16]) for jacobian in rows]
    last = Dense(rows[0][:, 7 * 16 :])
    assert is_near(before["0"].alignment(before["2"]), alignment(first[0], last))
    assert is_near(before["0"].alignment(after["0"]), alignment(first[0], first[1]))
    assert is_near(before["0"].distance(after["0"]), distance_of(first[0], first[1]))
    with pytest.raises(KeyError, match=r"unknown layer 'head'; its layers are '0', '2'"):
        before["head"]
    with pytest.raises(KeyError, match="none; take the fingerprint with by='layer'"):
        before["0"]["0"]


# Statistics.


def z_scores(seeds: int = 200) -> dict[str, float]:
    """Of the moments themselves, over seeds."""
    model, x = mlp(), batch(12)
    kernels = [NTK(m, x) for m in (model, moved(model, 0.3))]
    one, two = (dense(m, x) for m in (model, moved(model, 0.3)))
    truths = {
        "trace": one.trace,
        "square": one.frobenius_norm**2,
        "inner": alignment(one, two) * one.frobenius_norm * two.frobenius_norm,
    }
    found: dict[str, list[float]] = {name: [] for name in truths}
    for seed in range(seeds):
        first, second = (kernel.fingerprint(2, seed) for kernel in kernels)
        found["trace"].append(first.trace().value)
        found["square"].append(first.metric("inner_product", first).value)
        found["inner"].append(first.metric("inner_product", second).value)
    scores = {}
    for name, values in found.items():
        error = np.std(values, ddof=1) / np.sqrt(seeds)
        scores[name] = float((np.mean(values) - truths[name]) / error)
    return scores


def test_is_unbiased() -> None:
    assert all(abs(z) < 4 for z in z_scores().values())


def test_the_check_finds_cross_terms_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rings.RingSums._add_own

    def kept(self: rings.RingSums, start: int, products: NDArray[np.float64]) -> None:
        same = np.einsum("pusisi->p", products) / products.shape[3]
        right(self, start, products)
        self._values += same

    monkeypatch.setattr(rings.RingSums, "_add_own", kept)
    assert abs(z_scores(60)["square"]) > 4
    assert abs(z_scores(60)["inner"]) > 4


def test_the_check_finds_probes_that_two_samples_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(size: int, start: int, stop: int, seed: int) -> NDArray[np.int8]:
        one = sample_signs(4, start, stop, seed)
        return np.tile(one, (size // 4, 1))

    monkeypatch.setattr(take, "sample_signs", shared)
    assert abs(z_scores()["square"]) > 4


# Many.


@pytest.mark.parametrize("samples", [40, 200])
def test_matrix_and_velocity_from_fingerprints_alone(samples: int) -> None:
    x = batch(samples)
    models = [moved(mlp(), step) for step in (0.0, 0.05, 0.1, 0.3)]
    taken = [NTK(model, x).fingerprint(4) for model in models]
    exact = [dense(model, x) for model in models]
    matrix = alignment_matrix(taken)
    assert np.asarray(matrix).shape == (4, 4)
    for a, b in itertools.combinations(range(4), 2):
        assert matrix.values[a, b] == matrix.values[b, a] == taken[a].alignment(taken[b]).value
        assert abs(matrix.values[a, b] - alignment(exact[a], exact[b])) < 6 * matrix.stderr[a, b]
    assert np.diag(matrix.values).tolist() == [1.0] * 4
    quick = alignment_matrix(taken, errors=False)
    np.testing.assert_allclose(quick.values, matrix.values, rtol=1e-12)
    assert np.isnan(quick.stderr).all()
    for found, (one, two) in zip(velocity(taken), itertools.pairwise(exact), strict=True):
        assert is_near(found, distance_of(one, two))
    for function in (alignment_matrix, velocity):
        with pytest.raises(ValueError, match="found no fingerprint"):
            function([])


# What must not be compared.


def other_size(x: torch.Tensor) -> Fingerprint:
    return NTK(mlp(), x[:4]).fingerprint()


def other_outputs(x: torch.Tensor) -> Fingerprint:
    return NTK(mlp(), x, outputs=lambda y: y[:, :2]).fingerprint()


def other_values(x: torch.Tensor) -> Fingerprint:
    changed = x.clone()
    changed[0, 0] += 1
    return NTK(mlp(), changed).fingerprint()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_size, r"8 and 4 samples; kernels are compared on the same state"),
        (other_outputs, r"4 and 2 outputs a sample"),
        (other_values, r"different inputs: the values differ; take both on one batch"),
        (lambda x: NTK(mlp(), x).fingerprint(3), r"different probes: probes=2, seed=0 and probes=3, seed=0"),
        (lambda x: NTK(mlp(), x).fingerprint(2, 1), r"probes=2, seed=0 and probes=2, seed=1"),
    ],
)
def test_what_is_not_comparable_is_refused(make: Callable[[torch.Tensor], Fingerprint], words: str) -> None:
    x = batch(8)
    ours, theirs = NTK(mlp(), x).fingerprint(), make(x)
    for compare in (ours.alignment, ours.distance):
        with pytest.raises(ValueError, match=words):
            compare(theirs)


def test_inputs_are_told_apart_by_values_not_by_names_or_precision() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.inner(tokens)

    x = batch(8)
    ours = NTK(mlp(), x).fingerprint()
    assert NTK(Named(), {"tokens": x}).fingerprint().inputs == ours.inputs
    assert NTK(mlp(dtype=torch.float32), x.float()).fingerprint().inputs == ours.inputs
    assert NTK(mlp(), x.flip(0)).fingerprint().inputs != ours.inputs


def test_bad_arguments() -> None:
    kernel = NTK(mlp(), batch(8))
    found = kernel.fingerprint()
    with pytest.raises(ValueError, match="at least 2 probes, found 1; use probes=2 or more"):
        kernel.fingerprint(1)
    with pytest.raises(TypeError, match=r"probes must be an int, found 2\.5"):
        kernel.fingerprint(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must not be negative"):
        kernel.fingerprint(seed=-1)
    with pytest.raises(ValueError, match="unknown by='module'; choose one of None, 'layer'"):
        kernel.fingerprint(by="module")
    with pytest.raises(TypeError, match=r"compared with another one, found NTK; take one of it"):
        found.alignment(kernel)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown metric 'norm'; choose one of 'trace'"):
        found.metric("norm")
    with pytest.raises(ValueError, match="alignment takes 2 kernels, found 1"):
        found.metric("alignment")
    with pytest.raises(TypeError, match=r"its layers are named by \.layers"):
        list(found)
    with pytest.raises(ValueError, match=r"treated on their own: batch_dim=None says that they are coupled"):
        NTK(mlp(), batch(8), batch_dim=None).fingerprint()
    with pytest.raises(ValueError, match=r"the memory budget is 20,000; raise memory="):
        NTK(mlp(), batch(64), memory=20_000).fingerprint(40)
