"""The per-sample Jacobian: when it is taken, what it costs, and that budgets do not change it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inside import refusal
from ntkscope import NTK
from ntkscope.engines.torch.kernel import TorchEngine
from ntkscope.engines.torch.samples.tiles import SampleRows
from ntkscope.operators.probes import random_signs
from reference import dense
from zoo import BY_NAME, Case, Function, each

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

VARIED = ["mlp", "gru", "cnn-batch-norm-eval", "tied-embedding", "class-token", "samples-last", "transformer"]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


# Coupled samples.


def _of_linear(run: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Function(lambda m, x: run(m.linear(x)), linear=nn.Linear(4, 3))


COUPLED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch-norm-in-training": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
        "does not run on a single sample",
    ),
    "batch-norm-of-images-in-training": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten()
        ),
        "depends on the other samples",
    ),
    "softmax-over-the-batch": (_of_linear(lambda y: y.softmax(0)), "depends on the other samples"),
    "centred-over-the-batch": (_of_linear(lambda y: y - y.mean(0)), "depends on the other samples"),
    "divided-by-the-batch": (_of_linear(lambda y: y / len(y)), "depends on the other samples"),
    "sorted": (_of_linear(lambda y: y.sort(0).values), "depends on the other samples"),
    "shifted-to-the-next-sample": (_of_linear(lambda y: y.roll(1, 0)), "depends on the other samples"),
    "cumulative": (_of_linear(lambda y: y.cumsum(0)), "depends on the other samples"),
    "similarities": (_of_linear(lambda y: F.normalize(y) @ F.normalize(y).T), "no axis of the state"),
    "mean": (_of_linear(lambda y: y.mean(0)), "no axis of the state"),
    "a-small-part-of-the-batch": (
        _of_linear(lambda y: torch.tanh(y) + 1e-7 * y.mean(0)),
        "depends on the other samples",
    ),
    "in-the-gradient-alone": (
        _of_linear(lambda y: y + (y.sum(0) - y.sum(0).detach())),
        "do not add up to the gradient of the batch",
    ),
}


@pytest.mark.parametrize(("build", "reason"), COUPLED.values(), ids=COUPLED)
def test_coupled_samples_are_measured_as_a_whole_and_said_to_be(
    build: Callable[[], nn.Module], reason: str
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build().double()
    x = _random(5, 4)
    ntk, expected = NTK(model, x), dense(model, x)
    found = refusal(ntk)
    assert found
    assert reason in found
    for method in ("auto", "exact"):
        trace = ntk.trace(method)
        assert trace.method in ("exact (n VJPs)", "exact (p JVPs)")
        assert trace.value == pytest.approx(expected.trace, rel=1e-9)
    norm = ntk.frobenius_norm("exact")
    assert norm.method in ("exact (rows)", "exact (parameters)")
    assert norm.value == pytest.approx(expected.frobenius_norm, rel=1e-9)
    for found_way in ntk.plan().ways:
        if "per" in found_way.name:
            assert reason in found_way.why_not


def test_one_sample_cannot_be_coupled() -> None:
    model = Function(lambda m, x: m.linear(x).softmax(0), linear=nn.Linear(4, 3)).double()
    ntk = NTK(model, _random(1, 4))
    assert not refusal(ntk)
    assert ntk.trace("exact").value == 0


# Estimates.


@each(VARIED)
def test_squared_norms_of_random_signs_are_unbiased_for_every_sample(case: Case) -> None:
    structure = case.shared().engine.samples().jacobian
    probes = 2000
    signs = torch.from_numpy(random_signs(case.shared().n, 0, probes, seed=0).T.copy()).double()
    found = structure.squared_norms(signs)
    expected = (case.dense().jacobian[structure.axes.state_index()] ** 2).sum((1, 2))
    spread = found.std(0) / math.sqrt(probes)
    scores = (found.mean(0) - expected) / spread.clamp_min(1e-9 * expected)
    assert float(scores.abs().max()) < 4.5
    assert found.shape == (probes, structure.batch)


@each(VARIED)
def test_budgets_do_not_change_squared_norms(case: Case) -> None:
    z = _random(11, case.shared().n)
    usual, exact = (
        case.shared().engine.samples().jacobian.squared_norms(z),
        case.shared().engine.samples().jacobian.frobenius_squared(),
    )
    for budget in (1, 5_000, 60_000, 1_000_000):
        structure = case.ntk(memory=budget).engine.samples().jacobian
        torch.testing.assert_close(structure.squared_norms(z), usual, rtol=1e-10, atol=0)
        torch.testing.assert_close(structure.frobenius_squared(), exact, rtol=1e-10, atol=0)


@each(["mlp", "gru"])
def test_the_same_seed_gives_the_same_samples_for_every_budget_and_count(case: Case) -> None:
    usual = case.shared().trace("per-sample", 9, seed=4)
    assert usual.samples is not None
    for options in ({"chunk_size": 1}, {"chunk_size": 4}, {"memory": 1}, {"memory": 40_000}):
        estimate = case.ntk(**options).trace("per-sample", 9, seed=4)
        assert estimate.value == pytest.approx(usual.value, rel=1e-10)
        assert estimate.samples == pytest.approx(usual.samples, rel=1e-10)
    fewer = case.ntk().trace("per-sample", 5, seed=4)
    assert fewer.samples == pytest.approx(usual.samples[:5], rel=1e-10)


# Costs.


@each(["mlp", "gru", "class-token"])
@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_vjps_count_probes_of_the_whole_batch(case: Case, budget: int) -> None:
    structure = case.ntk(memory=budget).engine.samples().jacobian
    assert structure.ledger.vjps == 0
    structure.squared_norms(_random(7, case.shared().n))
    assert structure.ledger.vjps == 7
    structure.frobenius_squared()
    assert structure.ledger.vjps == 7 + structure.outputs
    source = SampleRows(structure).with_rows(max(1, structure.outputs // 2))
    for _ in source.blocks(0, len(source)):
        pass
    assert structure.ledger.vjps == pytest.approx(7 + 2 * structure.outputs)


def test_costs_of_estimates_are_those_of_their_products() -> None:
    ntk = BY_NAME["gru"].ntk()
    assert ntk.trace("per-sample", 6).cost.vjps == 6
    assert ntk.trace("per-sample", 4).cost.vjps == 4


@each(["mlp", "gru", "samples-last"])
@pytest.mark.parametrize("budget", [1, 30_000, 1 << 30])
def test_progress_ends_with_all_outputs(case: Case, budget: int) -> None:
    structure = case.ntk(memory=budget).engine.samples().jacobian
    calls: list[tuple[int, int]] = []
    structure.frobenius_squared(lambda done, total: calls.append((done, total)))
    done = [count for count, _ in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (structure.outputs * structure.batch,) * 2


def test_the_whole_batch_runs_forward_once_and_parts_each_time() -> None:
    roomy = BY_NAME["mlp"].ntk().engine.samples().jacobian
    first, second = (next(iter(roomy.linearizations(4)))[1] for _ in range(2))
    assert first is second
    parts = [list(part) for part, _ in roomy.linearizations(3)]
    assert parts == [[0, 1, 2], [3]]


@each(["mlp", "gru", "transformer"])
def test_steps_grow_with_the_budget(case: Case) -> None:
    work = []
    for budget in (1, 10_000, 100_000, 1_000_000, 1 << 30):
        samples, probes = case.ntk(memory=budget).engine.samples().jacobian._portions.of(100)
        assert 1 <= samples <= case.shared().engine.samples().jacobian.batch
        assert probes >= 1
        work.append(samples * probes)
    assert work[0] == 1
    assert work == sorted(work)


# Factors.


@each(VARIED)
def test_pulled_back_factors_sum_to_the_gradient_of_the_batch(case: Case) -> None:
    ntk = case.shared()
    structure = ntk.engine.samples().jacobian
    z = _random(3, ntk.n)
    linear = structure.linearize(range(structure.batch))
    factors = [gradient.factor for gradient in linear.pull(structure.axes.to_samples(z))]
    found = sum((factor.summed() ** 2).sum(1) for factor in factors)
    torch.testing.assert_close(found, (ntk.vjp(z.T) ** 2).sum(0))
    assert all(factor.probes == 3 for factor in factors)
    reached = sum(factor.row_size() for factor in factors)
    assert reached == ntk.n_params


@each([*VARIED, "matmul-by-hand", "prelu"])
def test_gradients_are_known_by_their_parameters(case: Case) -> None:
    ntk = case.shared()
    structure, jacobian = ntk.engine.samples().jacobian, case.dense().jacobian
    linear, graph = structure.linearize(range(structure.batch)), structure.graph
    probes = torch.eye(structure.outputs, dtype=torch.float64).unsqueeze(1).expand(-1, structure.batch, -1)
    found: dict[frozenset[str], Tensor] = {}
    for gradient in linear.pull(probes):
        names = frozenset(graph.blocks.get(block, block) for block in gradient.group.blocks)
        found[names] = found.get(names, 0) + gradient.factor.squared_norms().T
    sizes = [value.numel() for value in structure.function.parameters.values()]
    columns = dict(zip(structure.function.parameters, jacobian.split(sizes, dim=1), strict=True))
    index = structure.axes.state_index()
    for names, norms in found.items():
        expected = sum((columns[name] ** 2).sum(1) for name in names)
        torch.testing.assert_close(norms, expected[index], rtol=1e-9, atol=1e-12)
    assert frozenset().union(*found) == set(structure.function.parameters)


@each(VARIED)
def test_the_state_of_single_samples_is_the_models(case: Case) -> None:
    structure = case.shared().engine.samples().jacobian
    expected = structure.axes.to_samples(structure.function.state.reshape(1, -1))[0]
    for part, linear in structure.linearizations(2):
        found = linear.state.reshape(len(part), *structure.axes.state_shape)
        torch.testing.assert_close(found.detach(), expected[part.start : part.stop])


def test_structure_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    original = TorchEngine._find_samples
    monkeypatch.setattr(TorchEngine, "_find_samples", lambda self: (calls.append(self), original(self))[1])
    for name in ("mlp", "contrastive-head"):
        ntk = BY_NAME[name].ntk()
        ntk.trace("exact")
        ntk.frobenius_norm("exact")
        ntk.plan()
    assert len(calls) == 2
