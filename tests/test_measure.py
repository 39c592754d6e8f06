"""From a method's name to a computation: what is taken, what it costs, and how good it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import ntkscope
from ntkscope import NTK, Estimate
from ntkscope.measure import METHODS as BY_METRIC
from zoo import BY_NAME, Case, each, paper_mlp

# Which way is taken.


def test_auto_takes_the_planners_choice(take: Callable[[str], None]) -> None:
    ntk = NTK(torch.nn.Linear(3, 40), torch.ones(2, 3))
    take("per-sample")
    assert ntk.trace(rtol=1.0).method == "per-sample"
    take("exact (n VJPs)")
    assert ntk.trace().method == "exact (n VJPs)"
    take("xnystrace")
    assert "per" not in ntk.trace(rtol=0.5).method


@each(["batch-norm-training", "contrastive-head", "control-flow-on-values"])
def test_coupled_samples_take_whole_batch_methods_and_say_so(case: Case) -> None:
    ntk, dense = case.shared(), case.dense()
    for method in ("exact", "auto"):
        trace = ntk.trace(method=method)
        assert trace.method in ("exact (n VJPs)", "exact (p JVPs)")
        assert trace.value == pytest.approx(dense.trace, rel=1e-9)
    norm = ntk.frobenius_norm(method="exact")
    assert norm.method in ("exact (rows)", "exact (parameters)")
    assert norm.value == pytest.approx(dense.frobenius_norm, rel=1e-9)


def test_a_number_of_products_asks_for_an_estimate() -> None:
    ntk = BY_NAME["sequence-output"].shared()
    assert ntk.trace(products=3).cost.vjps == 3
    assert ntk.trace(products=3).stderr != 0
    assert "exact" not in ntk.frobenius_norm(products=9).method


def test_alignment_with_a_matrix() -> None:
    case = BY_NAME["mlp"]
    targets = np.arange(12.0)[:, None]
    matrix = targets @ targets.T
    kernel = case.dense().kernel.numpy()
    expected = float((kernel * matrix).sum() / (np.linalg.norm(kernel) * np.linalg.norm(matrix)))
    for other in (matrix, torch.from_numpy(matrix)):
        assert case.shared().alignment(other, method="exact").value == pytest.approx(expected, rel=1e-9)
        found = case.shared().measure([other], method="exact").alignment[0]
        assert found.value == pytest.approx(expected, rel=1e-9)


def test_kernels_with_other_sample_axes_are_compared_by_rows() -> None:
    plain = BY_NAME["samples-last"]
    model, _ = plain.make()
    square = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = NTK(model, square)
    second = NTK(torch.nn.Linear(4, 3).double(), square)
    assert first.shape == second.shape
    assert first.alignment(second, method="exact").method != "exact (tiles)"
    expected = (first.to_dense() * second.to_dense()).sum() / (
        first.to_dense().norm() * second.to_dense().norm()
    )
    assert first.alignment(second, method="exact").value == pytest.approx(float(expected), rel=1e-9)


# What it costs.


@pytest.mark.parametrize(
    ("way", "vjps", "jvps"),
    [("exact (per sample)", 3, 0), ("exact (n VJPs)", 12, 0), ("exact (p JVPs)", 0, 111)],
    ids=lambda value: str(value),
)
def test_exact_traces_count_their_products(
    way: str, vjps: int, jvps: int, take: Callable[[str], None]
) -> None:
    take(way)
    cost = BY_NAME["mlp"].ntk().trace(method="exact").cost
    assert (cost.vjps, cost.jvps) == (vjps, jvps)
    assert cost.seconds > 0


@pytest.mark.parametrize(
    ("method", "products", "vjps", "jvps"),
    [("per-sample", 7, 7, 0), ("rhutch", 7, 7, 0), ("fhutch", 7, 0, 7), ("hutch++", 9, 9, 9)],
)
def test_estimates_count_their_products(method: str, products: int, vjps: int, jvps: int) -> None:
    cost = BY_NAME["mlp"].ntk().trace(method=method, products=products).cost
    assert (cost.vjps, cost.jvps) == (vjps, jvps)


@pytest.mark.parametrize(
    ("way", "vjps"), [("exact (tiles)", 3), ("exact (rows)", 12), ("exact (parameters)", 12)]
)
def test_exact_kernels_count_their_products(way: str, vjps: int, take: Callable[[str], None]) -> None:
    take(way)
    found = BY_NAME["mlp"].ntk().measure(method="exact")
    assert found.cost.vjps == vjps
    assert found.trace.cost.vjps == vjps


# How it runs.


@pytest.mark.parametrize("metric", ["trace", "frobenius_norm", "effective_rank", "measure"])
def test_a_tolerance_is_met(metric: str) -> None:
    case = BY_NAME["sequence-output"]
    truth = case.dense()
    found = getattr(case.shared(), metric)(rtol=0.05)
    rows = [estimate for _, estimate in found.rows()] if metric == "measure" else [found]
    for estimate in rows:
        expected = getattr(truth, estimate.quantity)
        assert estimate.stderr is not None
        assert estimate.value == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("method", ["per-sample", "rhutch", "hutch++"])
def test_progress_is_called_with_growing_work(method: str) -> None:
    calls: list[tuple[float, int]] = []

    def progress(estimate: Estimate, spent: int, budget: int | None) -> None:
        calls.append((estimate.value, spent))

    estimate = NTK(*paper_mlp()).trace(method=method, products=60, progress=progress)
    spent = [count for _, count in calls]
    assert spent == sorted(set(spent))
    assert spent[-1] == 60
    assert calls[-1][0] == estimate.value


def test_a_bar_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ntk = BY_NAME["mlp"].shared()
    quiet = ntk.trace(method="per-sample", products=8).value
    assert ntk.trace(method="per-sample", products=8, progress=True).value == quiet
    assert ntk.trace(method="exact", progress=True).stderr == 0


@pytest.mark.parametrize("method", ["per-sample", "gram", "rhutch", "hutch++"])
def test_a_run_on_a_zero_kernel_ends(method: str) -> None:
    class Constant(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0

    def progress(estimate: Estimate, spent: int, budget: int | None) -> None:
        assert spent < 10_000, "the run does not end"

    ntk = NTK(Constant(3, 2), torch.ones(4, 3))
    estimate = ntk.trace(method=method, progress=progress)
    assert estimate.value == 0
    assert estimate.stderr in (0, None)


# How good it is.


def z_score(estimates: Sequence[Estimate], truth: float) -> float:
    """Distance of the mean from the truth in standard errors of the mean."""
    values = np.array([estimate.value for estimate in estimates])
    return float((values.mean() - truth) / (values.std(ddof=1) / math.sqrt(len(values))))


def stderr_ratio(estimates: Sequence[Estimate]) -> float:
    """RMS of the reported standard errors over the spread of the values."""
    reported = np.array([estimate.stderr for estimate in estimates], dtype=float)
    return float(np.sqrt((reported**2).mean()) / np.std([e.value for e in estimates], ddof=1))


def check(estimates: Sequence[Estimate], truth: float) -> None:
    assert abs(z_score(estimates, truth)) < 4
    assert 0.75 < stderr_ratio(estimates) < 1.25
    covered = [low <= truth <= high for low, high in (estimate.interval() for estimate in estimates)]
    assert 0.88 < np.mean(covered) <= 1


def many(ntk: NTK, method: str, products: int, seeds: int = 200) -> list[Estimate]:
    return [ntk.trace(method=method, products=products, seed=seed) for seed in range(seeds)]


@pytest.fixture(scope="module")
def small_kernel() -> NTK:
    """A small MLP's kernel of 120 states and a slowly falling spectrum."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(24, 6)
        model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5))
    return NTK(model.double(), x.double())


METHODS = [("hutch++", 30), ("rhutch", 20), ("fhutch", 20), ("per-sample", 20)]


@pytest.mark.parametrize(("method", "products"), METHODS)
def test_estimates_are_unbiased_and_know_their_error(method: str, products: int, small_kernel: NTK) -> None:
    check(many(small_kernel, method, products), small_kernel.trace(method="exact").value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "products"), [("hutch++", 60), ("rhutch", 30), ("fhutch", 30), ("per-sample", 10)]
)
def test_estimates_of_the_papers_mlp_are_unbiased(method: str, products: int) -> None:
    check(many(NTK(*paper_mlp()), method, products), 2314.2322)


def _biased(estimate: Estimate) -> Estimate:
    return Estimate(estimate.value * 1.02, estimate.stderr, degrees_of_freedom=estimate.degrees_of_freedom)


def _overconfident(estimate: Estimate) -> Estimate:
    return Estimate(estimate.value, estimate.stderr / 2, degrees_of_freedom=estimate.degrees_of_freedom)


def _timid(estimate: Estimate) -> Estimate:
    return Estimate(estimate.value, estimate.stderr * 2, degrees_of_freedom=estimate.degrees_of_freedom)


@pytest.mark.parametrize("broken", [_biased, _overconfident, _timid])
def test_the_check_rejects_a_broken_estimator(
    broken: Callable[[Estimate], Estimate], small_kernel: NTK
) -> None:
    estimates = [broken(estimate) for estimate in many(small_kernel, "per-sample", 20)]
    with pytest.raises(AssertionError):
        check(estimates, small_kernel.trace(method="exact").value)


def test_per_sample_noise_is_that_of_the_diagonal_blocks(small_kernel: NTK) -> None:
    kernel = small_kernel.to_dense().numpy()
    blocks = [kernel[5 * b : 5 * b + 5, 5 * b : 5 * b + 5] for b in range(24)]
    variance = 2 * 5 / 7 * sum((block**2).sum() - np.trace(block) ** 2 / 5 for block in blocks)
    samples = small_kernel.trace(method="per-sample", products=2000).samples
    assert samples is not None
    assert np.var(samples, ddof=1) == pytest.approx(variance, rel=0.15)


def test_seeds_give_different_estimates(small_kernel: NTK) -> None:
    for method, products in METHODS:
        values = {small_kernel.trace(method, products, seed).value for seed in (0, 1, 2)}
        assert len(values) == 3


def test_every_metric_lists_its_methods() -> None:
    assert set(BY_METRIC["trace"]) - set(BY_METRIC["frobenius_norm"]) >= {
        "per-sample-forward",
        "rhutch",
        "fhutch",
    }
    for metric in ("trace", "frobenius_norm", "effective_rank", "alignment", "measure"):
        assert {"auto", "exact", "hutch++"} <= set(BY_METRIC[metric])


def test_one_fixture_of_any_kind(small_kernel: NTK) -> None:
    """What the estimators alone make of an NTK is what its own methods make of it."""
    from ntkscope import estimators

    own: Any = small_kernel.trace("hutch++", 30, seed=2)
    alone = estimators.trace(small_kernel, "hutch++", 30, seed=2)
    dense = estimators.trace(small_kernel.to_dense().numpy(), "hutch++", 30, seed=2)
    assert alone.value == own.value
    assert dense.value == pytest.approx(own.value, rel=1e-8)


# Several kernels at once.


def _checkpoints(count: int) -> tuple[list[NTK], np.ndarray]:
    """A model after some steps of change, and the alignments of its dense kernels."""
    model, x = BY_NAME["mlp"].make()
    kernels = []
    for step in range(count):
        kernels.append(NTK(model, x))
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * step + number)
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    dense = [ntk.to_dense().numpy() for ntk in kernels]
    norms = [np.linalg.norm(matrix) for matrix in dense]
    return kernels, np.array(
        [
            [(a * b).sum() / s / t for b, t in zip(dense, norms, strict=True)]
            for a, s in zip(dense, norms, strict=True)
        ]
    )


@pytest.mark.parametrize("method", ["auto", "exact", "sketch", "nystrom", "gram"])
def test_all_kernels_and_all_pairs_at_once(method: str) -> None:
    kernels, expected = _checkpoints(3)
    found = ntkscope.measure_all(kernels, method=method, products=None if method == "auto" else 36 * 3)
    error = 1e-9 if method in ("auto", "exact") else 5 * found.alignment_stderr().max() + 1e-9
    np.testing.assert_allclose(found.alignment_matrix(), expected, atol=error)
    for ntk, one in zip(kernels, found, strict=True):
        assert one.trace is not None
        assert one.trace.value == pytest.approx(ntk.trace("exact").value, rel=0.5)
    assert found.to_dict()["alignment_matrix"] == found.alignment_matrix().tolist()
    assert "kernel 2" in str(found)
    assert found._repr_html_().count("<table>") == 3


def test_every_kernel_pays_once_for_all_pairs(take: Callable[[str], None]) -> None:
    kernels, _ = _checkpoints(3)
    take("exact (tiles)")
    exact = ntkscope.measure_all(kernels, method="exact")
    assert exact[0].cost.vjps == sum(ntk.engine.samples().jacobian.outputs for ntk in kernels)
    assert ntkscope.measure_all(kernels, method="nystrom", products=18)[0].cost.products == 18


def test_measure_all_wants_kernels_on_one_state() -> None:
    kernels, _ = _checkpoints(1)
    with pytest.raises(ValueError, match=r"measure_all needs at least one kernel, found none; pass"):
        ntkscope.measure_all([])
    with pytest.raises(ValueError, match=r"kernels are compared on the same state"):
        ntkscope.measure_all([*kernels, BY_NAME["sequence-output"].shared()])
    with pytest.raises(ValueError, match=r"unknown method 'hutch\+\+' for measure_all; choose one of"):
        ntkscope.measure_all(kernels, method="hutch++")


# Where the trace inside the effective rank comes from.


@pytest.mark.parametrize("trace_method", ["exact", "per-sample", "per-sample-forward"])
def test_the_trace_may_come_from_elsewhere(trace_method: str) -> None:
    ntk, dense = BY_NAME["mlp"].shared(), BY_NAME["mlp"].dense()
    found = ntk.measure(method="sketch", products=9, trace_method=trace_method)
    assert found.trace is not None
    assert found.effective_rank is not None
    assert trace_method in found.trace.method
    assert f"trace by {found.trace.method}" in found.effective_rank.method
    assert found.effective_rank.interval()[0] < dense.effective_rank < found.effective_rank.interval()[1]
    rank = ntk.effective_rank(method="sketch", products=9, trace_method=trace_method)
    assert rank.method == found.effective_rank.method


def test_an_unknown_trace_method_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown trace_method 'best'; choose one of 'exact', 'per-sample'"):
        BY_NAME["mlp"].shared().measure(method="sketch", trace_method="best")


# What a model does not have.


def _bag() -> NTK:
    """Its operation has neither a forward mode nor a second derivative."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.EmbeddingBag(10, 4, mode="mean"), torch.nn.Linear(4, 3))
    return NTK(model.double(), torch.randint(10, (5, 4)))


def test_without_forward_products_auto_goes_by_reverse_mode_alone() -> None:
    ntk = _bag()
    expected = torch.linalg.matrix_norm(ntk.to_dense()).item()
    assert ntk.measure().frobenius_norm.value == pytest.approx(expected, rel=1e-9)  # type: ignore[union-attr]
    found = ntk.frobenius_norm(products=10)
    assert found.method in ("gram", "per-sample")
    assert found.interval()[0] < expected < found.interval()[1]
    assert ntkscope.measure_all([ntk, ntk], products=12)[1].frobenius_norm.method in ("gram", "per-sample")  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["hutch++", "fhutch"])
def test_without_forward_products_the_remedy_is_named(method: str) -> None:
    with pytest.raises(NotImplementedError, match=r"has neither a forward mode .*'gram' or 'rhutch'"):
        _bag().trace(method, products=9)


def test_torch_says_nothing_of_operations_that_it_loops_over() -> None:
    class Bilinear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Bilinear(4, 3, 5)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.layer(x, y)

    torch.manual_seed(0)
    ntk = NTK(Bilinear(), (torch.randn(6, 4), torch.randn(6, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ntk.trace().value > 0
        assert ntk.trace("hutch++", products=9).value > 0


@pytest.mark.parametrize("method", ["auto", "exact", "per-sample", "sketch", "nystrom", "gram"])
@pytest.mark.parametrize("limits", [{}, {"products": 36}, {"rtol": 0.05}], ids=str)
def test_traces_of_several_kernels_are_those_of_each_by_one_method(
    method: Any, limits: dict[str, Any]
) -> None:
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    torch.manual_seed(0)
    models = [
        torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)) for _ in "abc"
    ]
    kernels = [NTK(model, x) for model in models]
    found = ntkscope.measure_all(kernels, method, metrics=("trace",), **limits)
    assert len({one.trace.method for one in found}) == 1
    for kernel, one in zip(kernels, found, strict=True):
        exact = kernel.trace("exact").value
        assert list(one) == ["trace"]
        assert one.trace.value == pytest.approx(exact, rel=1e-5 if one.trace.stderr == 0 else 0.3)
        if limits.get("products") is None:
            alone = kernel.trace(method, **limits)
            assert one.trace.method == alone.method
    assert found[0].cost.products + found[0].cost.vjps > 0
