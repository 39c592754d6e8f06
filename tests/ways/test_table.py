"""Every way is a line of one table: an estimator more is a run in a file, and its line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ntkscope import NTK, estimators, measure_all
from ntkscope.operators.space import Map
from ntkscope.runs.moments import Moments
from ntkscope.ways.plan import predict
from ntkscope.ways.products import Shared
from ntkscope.ways.table import WAYS, methods_of


class ToyRun:
    """tr K = E zᵀKz and ⟨K_a, K_b⟩ = E (K_a z)ᵀ(K_b z): one product a probe and kernel."""

    stride = 4.0

    def __init__(self, maps: Sequence[Map], *, seed: int = 0) -> None:
        self._maps, self._seed = maps, seed
        self.quantum, self.minimum = len(maps), 2 * len(maps)
        self._traces: list[list[float]] = []
        self._inner: list[np.ndarray] = []

    def grow(self, products: int) -> None:
        first = self._maps[0]
        for probe in range(len(self._inner), products // len(self._maps)):
            z = first.probes(probe, probe + 1, seed=self._seed, stream=0)
            moved = [operator.apply(z) for operator in self._maps]
            self._traces.append([float(first.inner(z, x)[0]) for x in moved])
            self._inner.append(np.array([[first.inner(x, y)[0] for y in moved] for x in moved]))

    def result(self) -> Moments:
        if not self._inner:
            raise ValueError("nothing was drawn yet; grow the run first")
        traces, inner = np.array(self._traces), np.array(self._inner)
        freedom = float(len(inner) - 1)
        return Moments(
            traces.mean(0), inner.mean(0), traces, inner,
            np.full(traces.shape[1:], freedom), np.full(inner.shape[1:], freedom),
        )  # fmt: skip


TOY = Shared("toy", ToyRun)


@pytest.fixture
def toy() -> Iterator[None]:
    WAYS.append(TOY)
    yield
    WAYS.remove(TOY)


def _ntk(seed: int) -> NTK:
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(100), dtype=torch.float64)
    return NTK(model, inputs)


@pytest.mark.usefixtures("toy")
def test_an_estimator_more_measures_every_metric() -> None:
    ntk, other = _ntk(0), _ntk(1)
    method: Any = "toy"
    exact = ntk.measure([other], "exact")
    found = ntk.measure([other], method, products=80, seed=2)
    for (name, estimate), (_, truth) in zip(found.rows(), exact.rows(), strict=True):
        assert (estimate.method, estimate.seed, estimate.cost.products) == ("toy", 2, 80), name
        low, high = estimate.interval(0.9999)
        assert low < truth.value < high
        assert estimate.stderr is not None
        assert estimate.stderr > 0
    assert ntk.trace(method, products=40, seed=2).value == pytest.approx(found.trace.value, rel=1e-9)
    # Its error bar drives it to a tolerance, and what would cost as much becomes exact.
    near = ntk.trace(method, rtol=0.3)
    assert near.converged
    assert near.method == "toy"
    assert ntk.trace(method, products=ntk.n).stderr == 0


@pytest.mark.usefixtures("toy")
def test_it_is_there_for_matrices_and_for_several_kernels_too() -> None:
    matrix = np.diag(np.linspace(1, 3, 50))
    method: Any = "toy"
    found = estimators.frobenius_norm(matrix, method, products=20)
    low, high = found.interval(0.9999)
    assert low < np.linalg.norm(matrix) < high
    together = measure_all([_ntk(0), _ntk(1)], method, products=60)
    assert together.alignment_matrix().shape == (2, 2)
    assert together[0].trace.method == "toy"


@pytest.mark.usefixtures("toy")
def test_it_is_known_wherever_methods_are_named() -> None:
    for quantity in ("trace", "frobenius_norm", "alignment", "measure", "measure_all"):
        assert "toy" in methods_of(quantity)
        assert "toy" in methods_of(quantity, models=False)
    with pytest.raises(ValueError, match=r"choose one of 'auto', .*'toy'"):
        _ntk(0).trace("toi")  # type: ignore[arg-type]
    # Not asked to be taken by itself, it never is.
    ntk = _ntk(0)
    assert not [way for way in ntk.plan().ways if way.name == "toy"]
    sizes, machine = ntk.engine.sizes(), ntk.engine.machine()
    assert "toy" not in {way.name for way in predict(True, sizes, machine, 0.01)}


@pytest.mark.usefixtures("toy")
def test_a_budget_below_its_minimum() -> None:
    method: Any = "toy"
    with pytest.raises(ValueError, match="products=3 is too small: this method needs at least 4 products"):
        _ntk(0).alignment(_ntk(1), method, products=3)


def test_without_its_line_there_is_no_such_method() -> None:
    method: Any = "toy"
    with pytest.raises(ValueError, match="unknown method 'toy' for trace"):
        _ntk(0).trace(method)


def test_names_are_not_given_twice() -> None:
    for of_products in (False, True):
        names = [way.name for way in WAYS if way.serves(of_products)]
        assert len(names) == len(set(names))
