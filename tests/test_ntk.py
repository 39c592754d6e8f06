"""NTK over the zoo: every exact way and every product against dense float64 references."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from inside import refusal
from ntkscope import NTK, Cost
from ntkscope.engines.torch.forward import DoubleBackward
from reference import alignment
from zoo import BY_NAME, COUPLED, INDEPENDENT, ZOO, Case, each, each_case, paper_gru, paper_mlp

# Of torch's own: these models' operations are looped over under vmap.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

EXACT = {"rel": 1e-9, "abs": 1e-300}
TRACE_WAYS = ("exact (per sample)", "exact (n VJPs)", "exact (p JVPs)")
KERNEL_WAYS = ("exact (tiles)", "exact (rows)", "exact (parameters)")


def _ways(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """Every model with every way that it has."""
    pairs = [(case, way) for case in ZOO for way in names if case.independent or way not in names[:1]]
    return pytest.mark.parametrize(("case", "way"), pairs, ids=[f"{case.name}-{way}" for case, way in pairs])


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


# Exact metrics.


@each_case
def test_exact_metrics_are_those_of_the_dense_kernel(case: Case) -> None:
    ntk, other, dense = case.shared(0), case.shared(1), case.dense(0)
    assert ntk.trace(method="exact").value == pytest.approx(dense.trace, **EXACT)
    assert ntk.frobenius_norm(method="exact").value == pytest.approx(dense.frobenius_norm, **EXACT)
    assert ntk.effective_rank(method="exact").value == pytest.approx(dense.effective_rank, **EXACT)
    expected = alignment(dense, case.dense(1))
    assert ntk.alignment(other, method="exact").value == pytest.approx(expected, **EXACT)


@_ways(TRACE_WAYS)
def test_every_way_to_the_exact_trace(case: Case, way: str, take: Callable[[str], None]) -> None:
    take(way)
    estimate = case.shared().trace(method="exact")
    assert estimate.method == way
    assert estimate.stderr == 0
    assert estimate.value == pytest.approx(case.dense().trace, **EXACT)


@_ways(KERNEL_WAYS)
def test_every_way_to_exact_kernels(case: Case, way: str, take: Callable[[str], None]) -> None:
    take(way)
    dense, other = case.dense(0), case.dense(1)
    found = case.shared(0).measure([case.shared(1), case.shared(0)], method="exact")
    assert [estimate.method for _, estimate in found.rows()] == [way] * 5
    assert found.trace.value == pytest.approx(dense.trace, **EXACT)
    assert found.frobenius_norm.value == pytest.approx(dense.frobenius_norm, **EXACT)
    assert found.effective_rank.value == pytest.approx(dense.effective_rank, **EXACT)
    assert found.alignment[0].value == pytest.approx(alignment(dense, other), **EXACT)
    assert found.alignment[1].value == pytest.approx(1, **EXACT)


@each(INDEPENDENT)
def test_the_structure_is_found(case: Case) -> None:
    assert not refusal(case.shared())
    assert set(case.shared().engine.samples().jacobian.graph.general) == case.general
    assert case.shared().plan().choice.name != ""


@each(COUPLED)
def test_coupled_samples_are_detected(case: Case) -> None:
    reason = refusal(case.shared())
    assert reason
    with pytest.raises(ValueError, match="per-sample methods do not apply"):
        case.shared().trace(method="per-sample")
    assert "per sample" not in case.shared().trace(method="exact").method


@each(INDEPENDENT)
def test_squared_norms_of_each_sample(case: Case) -> None:
    structure = case.shared().engine.samples().jacobian
    z = torch.randn(3, case.shared().n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    index = structure.axes.state_index()
    jacobian = case.dense().jacobian
    expected = torch.stack([((z[:, own] @ jacobian[own]) ** 2).sum(1) for own in index], dim=1)
    _close(structure.squared_norms(z), expected)
    own_norms = torch.stack([(jacobian[own] ** 2).sum() for own in index])
    _close(structure.frobenius_squared(), own_norms)


# Products.


@each_case
def test_products_are_those_of_the_dense_jacobian(case: Case) -> None:
    ntk, jacobian, kernel = case.shared(), case.dense().jacobian, case.dense().kernel
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(ntk.n, 3, generator=generator, dtype=torch.float64)
    u = torch.randn(ntk.n_params, 3, generator=generator, dtype=torch.float64)
    assert (ntk.n, ntk.n_params) == jacobian.shape
    _close(ntk @ z, kernel @ z)
    _close(ntk.matvec(z[:, 0]), kernel @ z[:, 0])
    _close(ntk.vjp(z), jacobian.T @ z)
    _close(ntk.jvp(u), jacobian @ u)
    _close(ntk.to_dense(), kernel)


@each_case
def test_double_backward_is_forward_mode(case: Case) -> None:
    jacobian = case.ntk().engine.jacobian
    u = torch.randn(2, jacobian.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forward = jacobian.jvp(u)
    jacobian._forward = DoubleBackward(jacobian.function)
    _close(jacobian.jvp(u), forward)


@each(["mlp", "gru", "cnn-batch-norm-eval"])
def test_to_scipy(case: Case) -> None:
    operator = case.shared().to_scipy()
    kernel = case.dense().kernel.numpy()
    block = np.random.default_rng(0).standard_normal((len(kernel), 2))
    assert operator.shape == kernel.shape
    assert operator.dtype == np.float64
    np.testing.assert_allclose(operator @ block, kernel @ block, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(operator.T @ block[:, 0], kernel @ block[:, 0], rtol=1e-9, atol=1e-9)


def test_products_return_the_kind_that_they_take() -> None:
    ntk = BY_NAME["mlp"].shared()
    for product, size in ((ntk.matvec, ntk.n), (ntk.vjp, ntk.n), (ntk.jvp, ntk.n_params)):
        array = product(np.ones(size))
        tensor = product(torch.ones(size))
        assert isinstance(array, np.ndarray)
        assert isinstance(tensor, torch.Tensor)
        assert not tensor.requires_grad
        np.testing.assert_allclose(array, tensor.numpy())
        assert product(np.ones((size, 2))).shape == (len(array), 2)


def test_attributes() -> None:
    case = BY_NAME["gru"]
    ntk = case.shared()
    assert ntk.shape == (60, 60)
    assert ntk.output_shape == (5, 3, 4)
    assert ntk.dtype == torch.float64
    assert ntk.device == torch.device("cpu")
    assert repr(ntk) == "NTK(state 5×3×4, n=60, p=108, torch.float64, cpu)"
    assert repr(BY_NAME["scalar-state"].shared()).startswith("NTK(state scalar, n=1, ")


def test_tied_and_frozen_parameters_are_counted_once_or_not_at_all() -> None:
    assert BY_NAME["tied-embedding"].shared().n_params == 6 * 4 + 4 * 4 + 4 + 6
    assert BY_NAME["frozen"].shared().n_params == BY_NAME["mlp"].shared().n_params - 5 * 7 - 3


@pytest.mark.parametrize("method", ["exact", "auto", "hutch++", "rhutch", "fhutch", "per-sample"])
def test_a_zero_jacobian(method: str) -> None:
    class Constant(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0

    ntk = NTK(Constant(3, 2).double(), torch.ones(4, 3, dtype=torch.float64))
    assert ntk.trace(method=method).value == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_no_parameter_reaches(dtype: torch.dtype) -> None:
    class Detached(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    ntk = NTK(Detached(3, 2).to(dtype), torch.ones(4, 3, dtype=dtype))
    assert torch.equal(ntk.to_dense(), torch.zeros(8, 8, dtype=dtype))
    assert ntk.trace(method="exact").value == 0
    assert ntk.frobenius_norm(method="exact").value == 0
    assert np.isnan(ntk.effective_rank(method="exact").value)
    assert torch.equal(ntk @ torch.ones(8, dtype=dtype), torch.zeros(8, dtype=dtype))


# Chunks, budgets and precision.

VARIED = [
    "mlp", "cnn-batch-norm-eval", "gru", "lstm-batch-first", "transformer", "tied-embedding", "class-token",
    "video-frames-in-the-batch", "flattened-sequence-output", "batch-norm-training",
]  # fmt: skip


@each(VARIED)
@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 1},
        {"chunk_size": 7},
        {"memory": 1},
        {"memory": 20_000},
        {"memory": 300_000},
    ],
    ids=str,
)
def test_neither_chunks_nor_budgets_change_a_result(case: Case, options: dict[str, int]) -> None:
    ntk, dense = case.ntk(**options), case.dense()
    z = torch.ones(ntk.n, 9, dtype=torch.float64).cumsum(1)
    assert ntk.trace(method="exact").value == pytest.approx(dense.trace, **EXACT)
    assert ntk.frobenius_norm(method="exact").value == pytest.approx(dense.frobenius_norm, **EXACT)
    _close(ntk @ z, dense.kernel @ z)
    _close(ntk.to_dense(), dense.kernel)
    if case.independent:
        estimate = ntk.trace(method="per-sample", products=5, seed=3)
        usual = case.shared().trace(method="per-sample", products=5, seed=3)
        assert estimate.value == pytest.approx(usual.value, rel=1e-10)
        assert estimate.stderr == pytest.approx(usual.stderr, rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "method"),
    [("trace", name) for name in ("hutch++", "rhutch", "fhutch", "per-sample", "xtrace", "xnystrace", "gram")]
    + [("measure", name) for name in ("auto", "hutch++", "sketch", "nystrom", "gram")],
)
def test_same_seed_same_estimate_for_every_chunk_size(metric: str, method: str) -> None:
    def values(**options: int) -> list[float]:
        case = BY_NAME["mlp"]
        ntk = case.ntk(dtype=torch.float32, **options)
        if metric == "trace":
            return [ntk.trace(method, products=10, seed=5).value]
        found = ntk.measure([case.ntk(1, torch.float32, **options)], method, products=22, seed=5)
        return [estimate.value for _, estimate in found.rows()]

    usual = values()
    for options in ({"chunk_size": 1}, {"chunk_size": 3}, {"chunk_size": 1000}, {"memory": 5000}):
        assert values(**options) == pytest.approx(usual, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 0.15)], ids=["float32", "bfloat16"]
)
@each([case for case in INDEPENDENT if case.name not in ("interpolate",)])
def test_lower_precision(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    ntk, dense = case.ntk(dtype=dtype), case.dense()
    assert ntk.dtype == dtype
    estimate = ntk.trace(method="exact")
    assert estimate.value == pytest.approx(dense.trace, rel=tolerance)
    assert ntk.frobenius_norm(method="exact").value == pytest.approx(dense.frobenius_norm, rel=2 * tolerance)
    v = torch.ones(ntk.n, dtype=dtype)
    assert (ntk @ v).dtype == dtype
    assert ntk.matvec(np.ones(ntk.n, np.float32)).dtype == np.float32


# Facts.


def test_the_papers_mlp() -> None:
    ntk = NTK(*paper_mlp())
    assert ntk.n == 3200
    assert ntk.trace(method="exact").value == pytest.approx(2314.2322, rel=1e-6)
    found = ntk.measure(method="exact")
    assert found.frobenius_norm.value == pytest.approx(397.0445, rel=1e-6)
    assert found.effective_rank.value == pytest.approx(33.97, abs=0.005)


@pytest.mark.parametrize("method", ["hutch++", "sketch", "nystrom"])
def test_the_papers_mlp_has_a_low_numerical_rank(method: str) -> None:
    ntk = NTK(*paper_mlp())
    estimate = ntk.trace(method=method, products=300)
    assert estimate.value == pytest.approx(2314.2322, rel=1e-4)
    assert abs(estimate.value - 2314.2322) <= 5 * estimate.stderr + 1e-5 * 2314


def test_the_papers_gru() -> None:
    model, x = paper_gru()
    ntk = NTK(model, x, outputs=lambda y: y[0], batch_dim=1)
    assert (ntk.n, ntk.n_params) == (48_000, 14_592)
    assert ntk.trace(method="exact").value == pytest.approx(223_056.46, rel=1e-5)


def test_the_papers_gru_by_an_estimate() -> None:
    model, x = paper_gru()
    ntk = NTK(model, x, outputs=lambda y: y[0], batch_dim=1)
    estimate = ntk.trace(method="per-sample", products=6)
    assert estimate.value == pytest.approx(223_056.46, rel=0.03)


def test_the_cost_counts_every_product_of_the_kernel() -> None:
    ntk = NTK(torch.nn.Linear(3, 2), torch.eye(3))
    assert ntk.cost == Cost()
    ntk.vjp(torch.ones(ntk.n, 2))
    ntk.jvp(torch.ones(ntk.n_params))
    assert (ntk.cost.vjps, ntk.cost.jvps) == (2, 1)
    before = ntk.cost
    spent = [ntk.matvec(torch.ones(ntk.n, 4)), ntk.trace(method="per-sample", products=3)][1].cost
    assert ntk.cost - before == Cost(products=4, vjps=4 + spent.vjps, jvps=4 + spent.jvps)
    assert spent.vjps > 0
