"""The seam of engines: one in NumPy (``linear_engine.py``) passes, test by test, what torch's passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import linear_engine
from linear_engine import Layer, LinearEngine
from ntkscope import NTK, Cost, Options, measure_all
from ntkscope.engines import base, pick
from ntkscope.measure import METHODS
from ntkscope.metrics import METRICS, kernels_of

BATCH, INPUTS, OUTPUTS = 6, 5, 4


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pick, "ENGINES", [*pick.ENGINES, linear_engine.ENGINE])


def _numbers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, the same for all seeds, and weights."""
    inputs = np.random.default_rng(100).standard_normal((BATCH, INPUTS))
    generator = np.random.default_rng(seed)
    return inputs, generator.standard_normal((OUTPUTS, INPUTS)) / 2


@dataclass(frozen=True)
class Subject:
    """A layer by one engine, and its J without any."""

    make: Callable[[np.ndarray, bool], Any]
    array: Callable[[Any], Any]
    is_tanh: bool

    def model(self, seed: int = 0) -> Any:
        return self.make(_numbers(seed)[1], self.is_tanh)

    def ntk(self, seed: int = 0, **options: Any) -> NTK:
        return NTK(self.model(seed), self.array(_numbers(seed)[0]), **options)

    def jacobian(self, seed: int = 0) -> np.ndarray:
        x, weight = _numbers(seed)
        slopes = 1 - np.tanh(x @ weight.T) ** 2 if self.is_tanh else np.ones((BATCH, OUTPUTS))
        rows = np.einsum("bo,bi,oq->boqi", slopes, x, np.eye(OUTPUTS))
        return rows.reshape(BATCH * OUTPUTS, OUTPUTS * INPUTS)

    def truth(self, metric: str) -> float:
        """A metric of kernel 0, or of kernels 0 and 1, from dense matrices."""
        kernels = [j @ j.T for j in (self.jacobian(0), self.jacobian(1))]
        value = 1.0
        for moment, power in METRICS[metric].items():
            matrix = kernels[moment[0]]
            value *= float(np.trace(matrix if len(moment) == 1 else matrix @ kernels[moment[1]])) ** power
        return value


def _torch_layer(weight: np.ndarray, is_tanh: bool) -> nn.Module:
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    return nn.Sequential(layer, nn.Tanh()) if is_tanh else layer


SUBJECTS = {
    f"{name}-{'tanh' if is_tanh else 'linear'}": Subject(make, array, is_tanh)
    for name, make, array in (("numpy", Layer, np.asarray), ("torch", _torch_layer, torch.from_numpy))
    for is_tanh in (False, True)
}
each_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
CASES = [(metric, method) for metric in METRICS for method in METHODS[metric]]


def _metric(subject: Subject, metric: str, method: str, **options: Any) -> Any:
    others = [subject.ntk(1)] * (kernels_of(metric) - 1)
    return subject.ntk(0).metric(metric, *others, method=method, **options)


# Metrics.


@each_subject
@pytest.mark.parametrize(("metric", "method"), CASES)
def test_every_metric_by_every_method(subject: Subject, metric: str, method: str) -> None:
    budget = {} if method in ("auto", "exact") else {"products": 20}
    found = _metric(subject, metric, method, **budget)
    assert found.quantity == metric
    truth = subject.truth(metric)
    if found.stderr == 0:
        assert found.value == pytest.approx(truth, rel=1e-9)
    else:
        low, high = found.interval(0.9999)
        assert low <= truth <= high
    assert (found.stderr == 0) == found.method.startswith("exact")
    if method == "exact":
        assert found.stderr == 0


@pytest.mark.parametrize(("metric", "method"), CASES)
@pytest.mark.parametrize("kind", ["linear", "tanh"])
def test_the_same_seed_gives_the_same_number_by_either_engine(kind: str, metric: str, method: str) -> None:
    options = {} if method in ("auto", "exact") else {"products": 20, "seed": 3}
    ours = _metric(SUBJECTS[f"numpy-{kind}"], metric, method, **options)
    torchs = _metric(SUBJECTS[f"torch-{kind}"], metric, method, **options)
    assert ours.value == pytest.approx(torchs.value, rel=1e-9)
    if ours.method == torchs.method and ours.stderr is not None:
        assert ours.stderr == pytest.approx(torchs.stderr, rel=1e-6)


@each_subject
@pytest.mark.parametrize("way", ["exact (per sample)", "exact (n VJPs)", "exact (p JVPs)"])
def test_every_way_to_the_exact_trace(subject: Subject, way: str, take: Callable[[str], None]) -> None:
    take(way)
    found = subject.ntk().trace(method="exact")
    assert (found.method, found.stderr) == (way, 0)
    assert found.value == pytest.approx(subject.truth("trace"), rel=1e-9)
    spent = {
        "exact (per sample)": (OUTPUTS, 0),
        "exact (n VJPs)": (BATCH * OUTPUTS, 0),
        "exact (p JVPs)": (0, OUTPUTS * INPUTS),
    }
    assert (found.cost.vjps, found.cost.jvps) == spent[way]


@each_subject
@pytest.mark.parametrize("way", ["exact (tiles)", "exact (rows)", "exact (parameters)"])
def test_every_way_to_exact_kernels(subject: Subject, way: str, take: Callable[[str], None]) -> None:
    take(way)
    found = subject.ntk(0).measure([subject.ntk(1)], method="exact")
    assert {estimate.method for _, estimate in found.rows()} == {way}
    for metric, estimate in found.estimates.items():
        assert estimate.value == pytest.approx(subject.truth(metric), rel=1e-9)
    assert found.alignment[0].value == pytest.approx(subject.truth("alignment"), rel=1e-9)


@each_subject
@pytest.mark.parametrize("source", ["per-sample", "per-sample-forward", "exact"])
def test_the_trace_from_elsewhere(subject: Subject, source: Any) -> None:
    found = subject.ntk().effective_rank("sketch", products=20, trace_method=source)
    assert found.method.startswith("sketch, trace by ")
    low, high = found.interval(0.9999)
    assert low <= subject.truth("effective_rank") <= high


@each_subject
def test_a_tolerance_is_met(subject: Subject) -> None:
    for method in ("per-sample", "rhutch", "hutch++"):
        found = subject.ntk().trace(method, options=Options(rtol=0.2, seed=1))
        assert found.stderr == 0 or found.converged
        assert found.value == pytest.approx(subject.truth("trace"), rel=0.5)


@each_subject
def test_kernels_measured_together(subject: Subject) -> None:
    kernels = [subject.ntk(0), subject.ntk(1)]
    found = measure_all(kernels, method="exact")
    matrix = found.alignment_matrix()
    assert matrix == pytest.approx(matrix.T, rel=1e-12)
    assert matrix[0, 1] == pytest.approx(subject.truth("alignment"), rel=1e-9)
    dense = kernels[1].to_dense()
    assert kernels[0].alignment(dense, method="exact").value == pytest.approx(matrix[0, 1], rel=1e-9)


@each_subject
@pytest.mark.parametrize(
    ("method", "products", "spent"),
    [
        ("per-sample", 7, Cost(0, 7, 0)),
        ("per-sample-forward", 7, Cost(0, 0, 7)),
        ("rhutch", 7, Cost(0, 7, 0)),
        ("fhutch", 7, Cost(0, 0, 7)),
        ("hutch++", 9, Cost(9, 9, 9)),
    ],
)
def test_products_are_counted(subject: Subject, method: Any, products: int, spent: Cost) -> None:
    # The first run also pays for finding the structure, and for its checks.
    ntk = subject.ntk()
    ntk.trace(method, products=products)
    before = ntk.cost
    found = ntk.trace(method, products=products)
    assert ntk.cost - before == spent
    assert (found.cost.products, found.cost.vjps, found.cost.jvps) == (
        spent.products,
        spent.vjps,
        spent.jvps,
    )


# What it is, and its products.


@each_subject
def test_products(subject: Subject) -> None:
    ntk, jacobian = subject.ntk(), subject.jacobian()
    kernel = jacobian @ jacobian.T
    generator = np.random.default_rng(0)
    z, u = generator.standard_normal((ntk.n, 3)), generator.standard_normal((ntk.n_params, 3))
    np.testing.assert_allclose(ntk @ z, kernel @ z)
    np.testing.assert_allclose(ntk.matvec(z[:, 0]), kernel @ z[:, 0])
    np.testing.assert_allclose(ntk.vjp(z), jacobian.T @ z)
    np.testing.assert_allclose(ntk.jvp(u), jacobian @ u)
    np.testing.assert_allclose(ntk.jacobian().T @ z, jacobian.T @ z)
    np.testing.assert_allclose(np.asarray(ntk.to_dense()), kernel, atol=1e-12)
    np.testing.assert_allclose(ntk.to_scipy() @ z, kernel @ z)
    assert ntk.to_scipy().dtype == np.float64
    with pytest.raises(ValueError, match="expected"):
        ntk.vjp(u)


@each_subject
def test_what_it_is(subject: Subject) -> None:
    ntk = subject.ntk()
    assert (ntk.n, ntk.n_params) == subject.jacobian().shape
    assert ntk.output_shape == (BATCH, OUTPUTS)
    x, weight = _numbers(0)
    expected = np.tanh(x @ weight.T) if subject.is_tanh else x @ weight.T
    np.testing.assert_allclose(np.asarray(ntk.state), expected)
    assert repr(ntk).startswith("NTK(state 6×4, n=24, p=20, ")


@each_subject
def test_another_moment_of_training(subject: Subject) -> None:
    first = subject.ntk()
    later = first.at(subject.model(1))
    # The inputs stay: of a linear layer nothing moves.
    moved = first.alignment(later, method="exact").value
    assert (moved == pytest.approx(1, rel=1e-9)) is not subject.is_tanh
    assert 0 < moved <= 1 + 1e-9


@each_subject
def test_coupled_samples(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    coupled = subject.ntk(batch_dim=None)
    with pytest.raises(ValueError, match="per-sample methods do not apply: batch_dim=None"):
        coupled.trace("per-sample")
    assert coupled.trace("exact").method in ("exact (n VJPs)", "exact (p JVPs)")
    assert coupled.trace("exact").value == pytest.approx(subject.truth("trace"), rel=1e-9)
    coupled.explain("measure")
    assert "not here: batch_dim=None says that they are coupled" in capsys.readouterr().out


@each_subject
def test_plans(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    ntk = subject.ntk()
    assert ntk.trace("exact").method == ntk.plan(rtol=1e-9).choice.name
    ntk.explain("frobenius_norm")
    assert "with 4 outputs each" in capsys.readouterr().out


def _close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_eigenvalues_targets_and_other_inputs(subject: Subject) -> None:
    ntk, jacobian = subject.ntk(), subject.jacobian()
    kernel, y = jacobian @ jacobian.T, np.random.default_rng(3).standard_normal(BATCH * OUTPUTS)
    values = np.linalg.eigvalsh(kernel)[::-1]
    for method in ("exact", "krylov"):
        pairs = ntk.eigenpairs(3, method, rtol=1e-10)
        _close(pairs.values, values[:3])
        _close(kernel @ np.asarray(pairs.vectors), np.asarray(pairs.vectors) * pairs.values)
    _close(ntk.spectrum("exact").log_det(0.5).value, np.log(np.maximum(values, 0) + 0.5).sum())
    assert ntk.spectrum("lanczos", products=60).moment(1).value == pytest.approx(values.sum(), rel=0.3)
    share = y @ kernel @ y / (y @ y * np.linalg.norm(kernel))
    _close(ntk.target_alignment(y, method="exact").value, share)
    _close(ntk.inverse_form(y, 0.5).value, y @ np.linalg.solve(kernel + 0.5 * np.eye(len(y)), y))
    state = np.asarray(ntk.state).reshape(-1)
    _close(ntk.loss_speed(lambda h: (h**2).sum()).value, 4 * state @ kernel @ state)
    other = ntk.cross(subject.array(_numbers(0)[0][:2]))
    _close(other.to_dense(), kernel[:, : 2 * OUTPUTS])
    _close(other.frobenius_norm("exact").value, np.linalg.norm(kernel[:, : 2 * OUTPUTS]))
    alpha = np.linalg.solve(kernel + 0.5 * np.eye(len(y)), y - state)
    fit = ntk.regression(y, 0.5).predict(subject.array(_numbers(0)[0][:2]))
    _close(fit, (kernel @ alpha + state)[: 2 * OUTPUTS].reshape(2, OUTPUTS))


# How an engine is found.


def test_the_engine_follows_from_the_model() -> None:
    assert isinstance(SUBJECTS["numpy-linear"].ntk().engine, LinearEngine)
    assert not isinstance(SUBJECTS["torch-linear"].ntk().engine, LinearEngine)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, found dict"):
        NTK({}, np.eye(3))


def test_a_framework_that_is_not_loaded_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pick, "ENGINES", [("no_such_framework", "no_such_module"), linear_engine.ENGINE])
    assert SUBJECTS["numpy-tanh"].ntk().n == BATCH * OUTPUTS


def test_kernels_of_two_engines_are_not_mixed() -> None:
    ours, torchs = SUBJECTS["numpy-linear"].ntk(), SUBJECTS["torch-linear"].ntk()
    for one, other in ((ours, torchs), (torchs, ours)):
        with pytest.raises(ValueError, match="bring both models to one dtype and device"):
            one.alignment(other)
    # As a matrix it is another kernel like any.
    dense = torchs.to_dense().numpy()
    assert ours.alignment(dense, method="exact").value == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("subject", [SUBJECTS["numpy-tanh"], SUBJECTS["torch-tanh"]], ids=["numpy", "torch"])
def test_the_protocols_are_kept(subject: Subject) -> None:
    engine = subject.ntk().engine
    for part, protocol in ((engine, base.Engine), (engine.samples(), base.Samples)):
        missing = [name for name in dir(protocol) if not name.startswith("_") and not hasattr(part, name)]
        assert missing == []
