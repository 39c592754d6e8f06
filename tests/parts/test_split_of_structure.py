"""Splits where weights are derived from parameters, shared or scaled, and where outputs are 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, TensorDataset

from ntkscope import NTK


class LowRank(nn.Module):
    """W + BA of a frozen or a trained W."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.a = nn.Parameter(torch.randn(2, linear.in_features))
        self.b = nn.Parameter(torch.randn(linear.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.b @ self.a, self.bias)


class Shift(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w - w.mean()


class Twice(nn.Module):
    """A weight that is used as it is, and derived from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))
        self.gain = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight) @ (self.weight.T * self.gain)


def _parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 8))
    parametrize.register_parametrization(model[2], "weight", Shift())
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)
    ),
    "low rank": lambda: nn.Sequential(LowRank(nn.Linear(5, 6)), nn.Tanh(), LowRank(nn.Linear(6, 3))),
    "parametrization": _parametrized,
    "used and derived": Twice,
    "zeros": lambda: nn.Sequential(nn.Linear(5, 30), nn.ReLU()),
}


def _kernel(name: str) -> tuple[NTK, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, x = MODELS[name]().double(), torch.randn(6, 5, dtype=torch.float64)
    rows = [torch.autograd.grad(y, list(model.parameters()), retain_graph=True) for y in model(x).reshape(-1)]
    names = [name for name, _ in model.named_parameters()]
    return NTK(model, x), {
        name: torch.stack([row[i].reshape(-1) for row in rows]) for i, name in enumerate(names)
    }


@pytest.mark.parametrize("name", MODELS)
def test_parts_are_those_of_the_parameters(name: str) -> None:
    ntk, jacobians = _kernel(name)
    traces = ntk.split(by="parameter", method="exact")
    norms = ntk.split("frobenius_norm", by="parameter", method="exact")
    matrix = ntk.part_alignments(by="parameter", method="exact")
    kernels = {parameter: j @ j.T for parameter, j in jacobians.items()}
    assert set(traces) == set(kernels)
    for parameter, kernel in kernels.items():
        assert traces[parameter].value == pytest.approx(float(kernel.trace()), rel=1e-10)
        assert norms[parameter].value == pytest.approx(float(kernel.norm()), rel=1e-10)
    flat = torch.stack([kernels[row].reshape(-1) / kernels[row].norm() for row in matrix.rows])
    np.testing.assert_allclose(matrix.values, (flat @ flat.T).numpy(), rtol=1e-10)
    if "coupled" not in ntk.trace().method:
        squares = sum(j.square().sum(1) for j in jacobians.values())
        np.testing.assert_allclose(ntk.diagonal(method="exact").values.reshape(-1), squares, rtol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_probes_give_the_whole(name: str) -> None:
    ntk, _ = _kernel(name)
    for by in ("layer", "parameter", "sample"):
        split = ntk.split(by=by, method="per-sample", products=3, seed=5)
        whole = ntk.trace("per-sample", products=3, seed=5)
        assert sum(map(float, split.values())) == pytest.approx(whole.value, rel=1e-9)


def test_a_parametrization_is_of_its_layer() -> None:
    ntk, _ = _kernel("weight norm")
    assert list(ntk.split()) == ["0", "2"]
    ntk, _ = _kernel("parametrization")
    assert list(ntk.split()) == ["0", "2"]


def test_data_that_streams() -> None:
    torch.manual_seed(0)
    model, x = MODELS["zeros"]().double(), torch.randn(6, 5, dtype=torch.float64)
    streamed = NTK(model, DataLoader(TensorDataset(x), batch_size=4))
    whole = NTK(model, x)
    np.testing.assert_allclose(
        streamed.squared_gradients("exact").values, whole.squared_gradients("exact").values, rtol=1e-12
    )
    np.testing.assert_allclose(streamed.diagonal("exact").values, whole.diagonal("exact").values, rtol=1e-12)
    by_sample = streamed.split(by="sample", method="exact")
    assert list(map(float, by_sample.values())) == pytest.approx(whole.squared_gradients("exact").values)
    for how in ({"method": "exact"}, {"method": "per-sample", "products": 5}):
        for by in ("layer", "parameter"):
            ours, theirs = streamed.split(by=by, **how), whole.split(by=by, **how)  # type: ignore[arg-type]
            assert ours.keys() == theirs.keys()
            assert list(map(float, ours.values())) == pytest.approx(list(map(float, theirs.values())))
    with pytest.raises(ValueError, match="norms and alignments of parts are not there for data that streams"):
        streamed.split("frobenius_norm")
    with pytest.raises(ValueError, match="norms and alignments of parts are not there for data that streams"):
        streamed.part_alignments(method="per-sample", products=4)


def test_partial_traces_of_data_that_streams() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double(), torch.randn(6, 5).double()
    streamed = NTK(model, DataLoader(TensorDataset(x), batch_size=4))
    whole = NTK(model, x)
    for how in ({"method": "exact"}, {"method": "reverse", "products": 12}):
        ours = streamed.partial_trace("unit", names=("batch", "unit"), **how)  # type: ignore[arg-type]
        theirs = whole.partial_trace("unit", names=("batch", "unit"), **how)  # type: ignore[arg-type]
        np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-9)
    with pytest.raises(ValueError, match="keep the axis of samples are not there for data that streams"):
        streamed.partial_trace("batch", method="exact", names=("batch", "unit"))
