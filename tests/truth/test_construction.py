"""Models and inputs in the forms that people have: they work, or one line names the remedy."""

from __future__ import annotations

import types
from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from ntkscope import NTK
from truth.reference import dense
from truth.verdict import assert_right, assert_right_or_refused, check_model


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, dtype=torch.double)


class Remembers(nn.Module):
    """Keeps what it has seen, as models that are looked into do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.seen: list[Tensor] = []
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = torch.tanh(self.first(x))
        self.seen.append(self.hidden)
        return self.last(self.hidden)


def test_tensors_kept_after_a_forward_pass(x: Tensor) -> None:
    torch.manual_seed(0)
    model = Remembers().double()
    model(x)
    right = dense(model, lambda: model(x))
    kept = len(model.seen)
    ntk = NTK(model, x)
    assert_right(ntk.trace(method="exact"), right.trace)
    assert_right(ntk.frobenius_norm(), right.frobenius_norm)
    assert len(model.seen) == kept


def test_a_loss_with_its_history_kept(x: Tensor) -> None:
    model = _mlp()
    model.last_loss = model(x).pow(2).mean()  # type: ignore[assignment]
    model.history = {"loss": [model.last_loss]}  # type: ignore[assignment]
    check_model(model, x, lambda: model(x))


def test_an_averaged_model(x: Tensor) -> None:
    model = AveragedModel(_mlp())
    check_model(model, x, lambda: model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(x: Tensor) -> None:
    model = _mlp()
    right = dense(model, lambda: model(x)).trace
    for script in (torch.jit.script(model), torch.jit.trace(model, x)):
        assert_right_or_refused(lambda script=script: NTK(script, x).trace(method="exact"), right)


def test_data_parallel_inside(x: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.DataParallel(nn.Linear(3, 4)), nn.Linear(4, 2)).double()
    right = dense(model, lambda: model(x)).trace
    assert_right_or_refused(lambda: NTK(model, x).trace(method="exact"), right)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) * mask[:, None]


class Field(NamedTuple):
    x: Tensor
    mask: Tensor


@dataclass
class Batch:
    x: Tensor
    mask: Tensor


@pytest.mark.parametrize("kind", [UserDict, types.MappingProxyType, Field, Batch])
def test_forms_of_inputs(kind: Any, x: Tensor) -> None:
    torch.manual_seed(0)
    model, mask = Sum().double(), torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.double)
    right = dense(model, lambda: model(x, mask)).trace
    mapping = kind in (UserDict, types.MappingProxyType)
    inputs: Any = kind({"x": x, "mask": mask}) if mapping else kind(x, mask)
    assert_right_or_refused(lambda: NTK(model, inputs).trace(method="exact"), right)


def test_mappings_work(x: Tensor) -> None:
    """A mapping by any name is keyword arguments."""
    torch.manual_seed(0)
    model, mask = Sum().double(), torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.double)
    for kind in (UserDict, types.MappingProxyType):
        inputs = kind({"x": x, "mask": mask})
        check_model(model, inputs, lambda: model(x, mask))


@pytest.mark.parametrize("form", ["numpy", "float list", "loader", "dataset"])
def test_inputs_that_are_no_tensors(form: str, x: Tensor) -> None:
    model = _mlp()
    right = dense(model, lambda: model(x)).trace
    dataset = TensorDataset(x)
    forms: dict[str, Any] = {
        "numpy": x.numpy(),
        "float list": x.tolist(),
        "loader": DataLoader(dataset, batch_size=2),
        "dataset": dataset,
    }
    assert_right_or_refused(lambda: NTK(model, forms[form]).trace(method="exact"), right)


class _WithEmpty(nn.Module):
    """A parameter of no entries, as adapters of rank 0 have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.none = nn.Linear(3, 2), nn.Parameter(torch.zeros(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) + self.none.sum()


@pytest.mark.parametrize("batch_dim", [0, None])
def test_a_parameter_of_no_entries(batch_dim: int | None) -> None:
    """It is in no gradient: products and structure are those of the others."""
    torch.manual_seed(0)
    model, x = _WithEmpty().double(), torch.randn(5, 3, dtype=torch.double)
    ntk, right = NTK(model, x, batch_dim=batch_dim), dense(model, lambda: model(x))
    assert ntk.n_params == 8
    z = torch.ones(ntk.n, dtype=torch.double)
    torch.testing.assert_close(ntk @ z, right.kernel @ z)
    for metric, number in right.metrics():
        assert_right(getattr(ntk, metric)(method="exact"), number)
        assert_right(getattr(ntk, metric)("hutch++", products=9), number)
    if batch_dim == 0:
        assert_right(ntk.trace("per-sample", products=3), right.trace)
