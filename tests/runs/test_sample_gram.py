"""The per-sample Gram and its ring: equal to its naive transcription, unbiased, with honest error bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ntkscope import NTK
from ntkscope.metrics import evaluate
from ntkscope.operators.probes import random_signs
from ntkscope.results import Cost, Estimate
from ntkscope.runs import ring_sums
from ntkscope.runs.ring import Ring
from ntkscope.runs.sample_gram import SampleGramRun
from zoo import BY_NAME, INDEPENDENT, Case, each

Array = NDArray[np.float64]


class Dense:
    """The samples of a dense Jacobian of shape (B, s, p)."""

    epsilon = 2.0**-52

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self.batch, self.size = len(rows), rows.shape[0] * rows.shape[1]
        self.batches = (self.batch,)
        self.gradients: Array = np.zeros((self.batch, 0, rows.shape[2]))

    def add(self, signs: NDArray[np.int8]) -> None:
        z = signs.T.reshape(-1, self.batch, self.rows.shape[1]).astype(float)
        fresh = np.einsum("kbs,bsp->bkp", z, self.rows)
        self.gradients = np.concatenate([self.gradients, fresh], axis=1)

    def ring(
        self, order: NDArray[np.int64], block: int, offsets: Sequence[int], room: int
    ) -> Iterator[tuple[int, int, Array]]:
        rows = self.gradients[order]
        missing = -len(rows) % block
        rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]))]).reshape(
            -1, block, *rows.shape[1:]
        )
        for offset in offsets:
            yield offset, 0, np.einsum("usip,utjp->usitj", rows, np.roll(rows, -offset, axis=0))


def jacobians(batch: int, outputs: int = 3, size: int = 12, seed: int = 0, heavy: float = 0.0) -> list[Array]:
    """Two Jacobians that share most of their directions; the samples' sizes are log-normal."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((outputs, size)) + rng.standard_normal((batch, outputs, size))
    first = mixed * np.exp(heavy * rng.standard_normal((batch, 1, 1)))
    return [first, first + 0.4 * rng.standard_normal(first.shape)]


def truths(pair: list[Array]) -> dict[str, float]:
    flat = [rows.reshape(-1, rows.shape[2]) for rows in pair]
    one, two = (rows @ rows.T for rows in flat)
    norm = float(np.linalg.norm(one))
    return {
        "trace": float(np.trace(one)),
        "frobenius_norm": norm,
        "effective_rank": float(np.trace(one)) ** 2 / max(norm, 1e-150) ** 2,
        "inner_product": float(np.sum(one * two)),
        "alignment": float(np.sum(one * two)) / max(norm * float(np.linalg.norm(two)), 1e-300),
    }


def estimates(pair: list[Array], probes: int, seed: int) -> dict[str, Estimate]:
    run = SampleGramRun([Dense(rows) for rows in pair], seed=seed)
    run.grow(2 * probes)
    return {
        metric: evaluate(run.result(), metric, (0, 1), method="per-sample", cost=Cost(), seed=seed)
        for metric in truths(pair)
    }


def naive(pair: list[Array], probes: int, seed: int) -> tuple[float, float]:
    """Trace and inner product as DESIGN writes them, over the ring's pairs, entry by entry."""
    batch, outputs, _ = pair[0].shape
    signs = random_signs(batch * outputs, 0, probes, seed=seed, stream=22).T.reshape(probes, batch, outputs)
    gradients = [np.einsum("kbs,bsp->bkp", signs.astype(float), rows) for rows in pair]
    ring = Ring.of(batch, probes, seed)
    place = {int(sample): index // ring.block for index, sample in enumerate(ring.order)}
    inner = 0.0
    for b in range(batch):
        for other in range(batch):
            entries = [g[b] @ g[other].T for g in gradients]
            products = entries[0] * entries[1]
            apart = (place[other] - place[b]) % ring.blocks
            if b == other:
                inner += (products.sum() - np.trace(products)) / (probes * (probes - 1))
            elif apart == 0:
                inner += products.mean()
            else:
                inner += ring.weight * ring.offsets.count(apart) * products.mean()
    trace = sum(np.sum(g**2) / probes for g in gradients[:1])
    return float(trace), float(inner)


@pytest.mark.parametrize(("batch", "probes"), [(5, 2), (16, 3), (40, 2), (130, 4), (200, 2)])
def test_equals_its_naive_transcription(batch: int, probes: int) -> None:
    pair = jacobians(batch)
    found, (trace, inner) = estimates(pair, probes, 1), naive(pair, probes, 1)
    assert found["trace"].value == pytest.approx(trace, rel=1e-12)
    assert found["inner_product"].value == pytest.approx(inner, rel=1e-12)


def z_scores(pair: list[Array], probes: int, seeds: int) -> dict[str, float]:
    """Of the moments themselves, which are unbiased; ratios of them are not quite."""
    expected = truths(pair)
    values = [estimates(pair, probes, seed) for seed in range(seeds)]
    scores = {}
    for metric in ("trace", "inner_product"):
        found = np.array([one[metric].value for one in values])
        scores[metric] = (found.mean() - expected[metric]) / (found.std(ddof=1) / np.sqrt(seeds))
    return scores


@pytest.mark.parametrize(("batch", "heavy"), [(12, 0.0), (120, 0.0), (120, 0.7)])
def test_is_unbiased(batch: int, heavy: float) -> None:
    assert all(abs(z) < 4 for z in z_scores(jacobians(batch, heavy=heavy), 2, 200).values())


def test_the_check_finds_cross_terms_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample's probes against themselves are no estimate of ‖K_bb‖²."""
    right = ring_sums.RingSums._add_own

    def kept(self: ring_sums.RingSums, start: int, products: Array) -> None:
        same = np.einsum("pusisj->pusij", products)
        diagonal = np.einsum("pusii->p", same) / products.shape[3]
        right(self, start, products)
        self._values += diagonal

    monkeypatch.setattr(ring_sums.RingSums, "_add_own", kept)
    assert abs(z_scores(jacobians(12), 2, 200)["inner_product"]) > 4


def test_the_check_finds_probes_that_two_samples_share(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Dense.add

    def shared(self: Dense, signs: NDArray[np.int8]) -> None:
        first = signs.reshape(self.batch, -1, signs.shape[1])[:1]
        right(self, np.broadcast_to(first, (self.batch, *first.shape[1:])).reshape(signs.shape))

    monkeypatch.setattr(Dense, "add", shared)
    assert abs(z_scores(jacobians(12), 2, 200)["inner_product"]) > 4


def test_the_check_finds_a_ring_that_is_weighted_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "weight", property(lambda self: float(self.blocks)))
    assert abs(z_scores(jacobians(120), 2, 200)["inner_product"]) > 4


@pytest.mark.parametrize("probes", [2, 4])
@pytest.mark.parametrize(("batch", "heavy"), [(20, 0.0), (150, 0.0), (150, 0.7)])
def test_intervals_cover(batch: int, heavy: float, probes: int) -> None:
    pair = jacobians(batch, heavy=heavy)
    expected = truths(pair)
    found = [estimates(pair, probes, seed) for seed in range(150)]
    for metric, truth in expected.items():
        ends = [one[metric].interval() for one in found]
        covered = np.mean([low <= truth <= high for low, high in ends])
        assert covered >= 0.89, (metric, covered)
        told = np.sqrt(np.mean([one[metric].stderr ** 2 for one in found if one[metric].stderr is not None]))
        assert told < 3 * np.std([one[metric].value for one in found]), metric


def test_growth_in_steps_changes_nothing() -> None:
    pair = jacobians(40)
    whole, steps = (SampleGramRun([Dense(rows) for rows in pair], seed=3) for _ in range(2))
    whole.grow(10)
    for products in (4, 7, 10):
        steps.grow(products)
    for moment in ((0,), (0, 1), (1, 1)):
        assert steps.result().value(moment) == pytest.approx(whole.result().value(moment), rel=1e-12)


def test_one_probe_is_no_result() -> None:
    run = SampleGramRun([Dense(jacobians(4)[0])], seed=0)
    run.grow(1)
    with pytest.raises(ValueError, match="needs two probes; spend 2 products or more"):
        run.result()


def test_a_zero_kernel_and_a_single_sample() -> None:
    zero = [np.zeros((6, 2, 5))] * 2
    found = estimates(zero, 2, 0)
    assert (found["frobenius_norm"].value, found["frobenius_norm"].stderr) == (0, None)
    assert np.isnan(found["alignment"].value)
    one = estimates(jacobians(1, outputs=6), 4, 0)
    assert one["frobenius_norm"].stderr is None or one["frobenius_norm"].stderr > 0


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("probes", [2, 3, 5, 17])
def test_few_patterns_of_signs(batch: int, probes: int) -> None:
    """Two outputs know two patterns: probes may fall on them evenly, or all on one."""
    pair = jacobians(batch, outputs=2)
    right = truths(pair)
    for seed in range(60):
        for metric, found in estimates(pair, probes, seed).items():
            if metric != "trace" and found.stderr is not None:
                low, high = found.interval(1 - 2e-9)
                assert low <= right[metric] <= high, (metric, found, seed)


def test_one_output_is_known_by_its_signs() -> None:
    pair = jacobians(6, outputs=1)
    found, right = estimates(pair, 3, 0), truths(pair)
    assert found["frobenius_norm"].value == pytest.approx(right["frobenius_norm"], rel=1e-12)
    assert 0 < (found["frobenius_norm"].stderr or 0) < 1e-12


# By torch's engine.


@each([case for case in INDEPENDENT if case.shared().n <= 200])
def test_many_probes_come_to_the_dense_kernel(case: Case) -> None:
    """Every architecture of the zoo, through its own factors."""
    other = case.shared(1)
    found = case.shared().measure([other], method="per-sample", products=2 * 64, seed=2)
    dense = case.dense()
    for estimate, truth in (
        (found.trace, dense.trace),
        (found.frobenius_norm, dense.frobenius_norm),
        (found.alignment[0], case.shared().alignment(other, method="exact").value),
    ):
        if estimate.stderr is not None:
            assert abs(estimate.value - truth) <= 7 * estimate.stderr + 1e-9 * abs(truth)
    assert found.cost.vjps == 128


def test_products_around_the_ring_are_those_of_rows() -> None:
    """Outer products, lookups, positions and groups against formed gradients."""
    for name in ("mlp", "gru", "cnn-batch-norm-eval", "self-attention", "tied-embedding"):
        samples = BY_NAME[name].shared().engine.samples()
        probed = samples.probed()  # type: ignore[union-attr]
        signs = random_signs(probed.size, 0, 3, seed=0)
        probed.add(signs)
        rows = BY_NAME[name].dense().jacobian.numpy()
        index = samples.jacobian.axes.state_index().numpy()  # type: ignore[union-attr]
        gradients = np.einsum("bsk,bsp->bkp", signs[index].astype(float), rows[index])
        order = np.random.default_rng(0).permutation(probed.batch)
        dense = Dense(np.zeros((probed.batch, 1, rows.shape[1])))
        dense.gradients = gradients
        for block in (1, 2):
            offsets = range(-(-probed.batch // block))
            whole = {offset: tile for offset, _, tile in dense.ring(order, block, offsets, 0)}
            for room in (1, 10**9):
                for offset, start, found in probed.ring(order, block, offsets, room):
                    expected = whole[offset][start : start + len(found)]
                    tolerance = 1e-9 * np.abs(whole[offset]).max()
                    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=tolerance)


def test_auto_takes_it_where_it_is_the_cheapest() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Tanh(), torch.nn.Linear(40, 20))
    ntk = NTK(model, torch.randn(400, 30))
    assert ntk.plan("frobenius_norm").choice.name == "per-sample"
    found = ntk.measure(rtol=0.02)
    assert found.frobenius_norm.method == "per-sample"
    assert found.cost.vjps <= 8
    exact = ntk.measure(method="exact")
    for metric in ("trace", "frobenius_norm", "effective_rank"):
        assert found[metric].value == pytest.approx(exact[metric].value, rel=0.06)
