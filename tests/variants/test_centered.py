"""Centred alignment (CKA) against dense kernels, by every method and by fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ntkscope import NTK, Fingerprint
from ntkscope.runs import centered as runs
from ntkscope.runs.ring import Ring
from reference import dense
from zoo import INDEPENDENT, Case, each

Array = NDArray[np.float64]
SMALL = [case for case in INDEPENDENT if case.shared().n <= 120 and case.shared().engine.samples().batch > 1]


def centred_kernel(case: Case, seed: int) -> Array:
    """HKH by the definition: every sample's rows of J less their mean over the samples."""
    index = case.shared().engine.samples().state_index()
    jacobian = case.dense(seed).jacobian.numpy()
    rows = jacobian[index]
    flat = (rows - rows.mean(axis=0)).reshape(-1, jacobian.shape[1])
    kernel: Array = flat @ flat.T
    return kernel


def cosine(one: Array, two: Array) -> float:
    return float(np.sum(one * two) / (np.linalg.norm(one) * np.linalg.norm(two)))


def is_defined(case: Case) -> bool:
    scale = np.linalg.norm(case.dense().kernel.numpy())
    return all(np.linalg.norm(centred_kernel(case, seed)) > 1e-9 * scale for seed in (0, 1))


@each(SMALL)
def test_exact_over_the_zoo(case: Case) -> None:
    if not is_defined(case):
        pytest.skip("its samples all have one Jacobian")
    found = case.shared().alignment(case.shared(1), centered=True)
    truth = cosine(centred_kernel(case, 0), centred_kernel(case, 1))
    assert found.value == pytest.approx(truth, rel=1e-8)
    assert found.stderr == 0


def models() -> tuple[list[nn.Module], torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 5)).double() for _ in range(2)]
        x = torch.randn(30, 6).double() + 1
        with torch.no_grad():
            # Another moment of the first one's training.
            for one, two in zip(made[0].parameters(), made[1].parameters(), strict=True):
                two.copy_(one + 0.3 * torch.randn(one.shape, dtype=one.dtype))
    return made, x


def truth_of(samples: int = 30) -> dict[str, float]:
    made, x = models()
    kernels = []
    for model in made:
        rows = dense(model, x[:samples]).jacobian.numpy().reshape(samples, 5, -1)
        flat = (rows - rows.mean(axis=0)).reshape(samples * 5, -1)
        kernels.append(flat @ flat.T)
    one, two = kernels
    return {
        "trace": float(np.trace(one)),
        "norm": float(np.linalg.norm(one)),
        "inner": float(np.sum(one * two)),
        "alignment": cosine(one, two),
    }


@pytest.mark.parametrize("method", ["sketch", "nystrom", "gram", "hutch++", "per-sample", "exact", "auto"])
def test_every_method_comes_to_it(method: str) -> None:
    made, x = models()
    first, second = (NTK(model, x) for model in made)
    found = first.alignment(second, method, centered=True, rtol=0.02)  # type: ignore[arg-type]
    truth = truth_of()["alignment"]
    assert found.stderr is not None
    assert abs(found.value - truth) <= 5 * found.stderr + 1e-9
    assert abs(found.value - truth) < 0.06
    assert abs(first.alignment(second, "exact").value - truth) > 1e-3  # centring matters here


def test_products_where_dense_kernels_do_not_fit() -> None:
    made, x = models()
    first, second = (NTK(model, x, memory=300_000) for model in made)
    found = first.alignment(second, centered=True, rtol=0.05)
    assert found.cost.products > 0
    assert found.value == pytest.approx(truth_of()["alignment"], abs=0.1)


def test_with_a_matrix() -> None:
    """The kernel of the targets, as CKA is mostly used."""
    made, x = models()
    targets = np.random.default_rng(0).standard_normal((150, 2))
    labels = targets @ targets.T
    centre = np.kron(np.eye(30) - 1 / 30, np.eye(5))
    kernel = dense(made[0], x).kernel.numpy()
    truth = cosine(centre @ kernel @ centre, centre @ labels @ centre)
    ntk = NTK(made[0], x)
    assert ntk.alignment(labels, centered=True).value == pytest.approx(truth, rel=1e-9)
    found = ntk.alignment(labels, "sketch", products=120, centered=True)
    assert found.stderr is not None
    assert abs(found.value - truth) <= 6 * found.stderr
    with pytest.raises(ValueError, match="needs two models, found a matrix"):
        ntk.alignment(labels, "per-sample", centered=True)


def test_coupled_samples_are_refused() -> None:
    made, x = models()
    ntk = NTK(made[0], x, batch_dim=None)
    with pytest.raises(ValueError, match=r"a centred alignment needs samples .* batch_dim=None says"):
        ntk.alignment(ntk, centered=True)


# Fingerprints.


def taken(probes: int, seed: int, samples: int = 30, by: str | None = None) -> list[Fingerprint]:
    made, x = models()
    return [NTK(model, x[:samples]).fingerprint(probes, seed, by, centered=True) for model in made]


@pytest.mark.parametrize("samples", [5, 16, 30])
def test_fingerprints_hold_the_products_of_centred_gradients(samples: int) -> None:
    made, x = models()
    found = taken(4, 2, samples)[0]
    rows = dense(made[0], x[:samples]).jacobian.numpy().reshape(samples, 5, -1)
    signs = runs.shared_probes(np.arange(samples * 5).reshape(samples, 5), 0, 4, 2)[:5]
    gradients = np.einsum("sk,bsp->bkp", signs, rows - rows.mean(axis=0))
    ring = Ring.complete(samples, 4)
    blocks = np.pad(gradients, ((0, -samples % ring.block), (0, 0), (0, 0)))
    blocks = blocks.reshape(ring.blocks, ring.block, *blocks.shape[1:])
    for place, offset in enumerate((0, *ring.offsets)):
        expected = np.einsum("usip,utjp->usitj", blocks, np.roll(blocks, -offset, axis=0))
        np.testing.assert_allclose(found.tiles[""][place], expected, rtol=1e-9, atol=1e-9)


def z_scores(seeds: int = 200) -> dict[str, float]:
    made, x = models()
    kernels = [NTK(model, x[:12]) for model in made]
    truth = truth_of(12)
    values = []
    for seed in range(seeds):
        one, two = (kernel.fingerprint(4, seed, centered=True) for kernel in kernels)
        square = one.metric("inner_product", one).value
        values.append((one.trace().value, square, one.metric("inner_product", two).value))
    expected = np.array([truth["trace"], truth["norm"] ** 2, truth["inner"]])
    found = np.array(values)
    z = (found.mean(axis=0) - expected) / (found.std(axis=0, ddof=1) / np.sqrt(seeds))
    return dict(zip(("trace", "square", "inner"), z.tolist(), strict=True))


def test_fingerprints_are_unbiased() -> None:
    assert all(abs(z) < 4 for z in z_scores().values())


def test_the_check_finds_a_probe_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    right = runs.pair_moments

    def kept(traces: Array, pairs: Array, epsilon: float) -> object:
        same = np.einsum("abii->ab", pairs) / pairs.shape[2] ** 2
        apart = np.eye(pairs.shape[2]) == 0
        return right(traces, pairs + np.where(apart, same[:, :, None, None], 0), epsilon)

    monkeypatch.setattr(runs, "pair_moments", kept)
    assert abs(z_scores(60)["square"]) > 4


def test_alignments_of_fingerprints_are_covered() -> None:
    truth = truth_of()["alignment"]
    made, x = models()
    kernels = [NTK(model, x) for model in made]
    held, far = [], []
    for seed in range(60):
        one, two = (kernel.fingerprint(6, seed, centered=True) for kernel in kernels)
        low, high = one.alignment(two).interval()
        held.append(low <= truth <= high)
        low, high = one.distance(two).interval()
        far.append(low <= 1 - truth <= high)
        assert one.distance(two).value == pytest.approx(1 - one.alignment(two).value, rel=1e-6)
    assert np.mean(held) >= 0.85
    assert np.mean(far) >= 0.85


def test_layers_and_files(tmp_path: object) -> None:
    one, two = taken(6, 0, by="layer")
    whole = taken(6, 0)[0]
    assert one.frobenius_norm().value == pytest.approx(whole.frobenius_norm().value, rel=1e-6)
    assert -1 <= one["0"].alignment(two["0"]).value <= 1
    path = f"{tmp_path}/one.safetensors"
    one.save(path)
    assert Fingerprint.load(path).alignment(two) == one.alignment(two)
    made, x = models()
    plain = NTK(made[0], x).fingerprint(6)
    with pytest.raises(ValueError, match="of a centred kernel, the other is not"):
        one.alignment(plain)
    with pytest.raises(ValueError, match="needs at least 4 probes, which samples share, found 2"):
        NTK(made[0], x).fingerprint(centered=True)
    with pytest.raises(ValueError, match="keeps all their pairs, which takes"):
        NTK(made[0], x, memory=500_000).fingerprint(8, centered=True)
    with pytest.raises(ValueError, match="found a centred kernel; take the fingerprint without"):
        one.effective_rank(population=True)
