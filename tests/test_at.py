"""NTK.at: the kernel at another moment of training, with the structure that is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.samples import jacobian as persample
from reference import dense
from zoo import BY_NAME, Function


@contextmanager
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fails(*args: Any) -> Any:
        raise AssertionError("traced anew")

    with monkeypatch.context() as patch:
        patch.setattr(persample, "trace", fails)
        yield


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def _train(model: nn.Module) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                parameter.mul_(1.1 + 0.05 * index)


@pytest.mark.parametrize(
    "name", ["mlp", "gru", "lstm-batch-first", "transformer", "cnn-batch-norm-eval", "frozen", "prelu"]
)  # fmt: skip
def test_it_is_a_new_kernel_without_tracing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME[name]
    model, inputs = case.make()
    first = NTK(model, inputs, **case.options)
    before = first.trace("exact").value
    _train(model)
    with _no_tracing(monkeypatch):
        later = first.at(model)
        found = later.measure([first], method="exact")
    expected = NTK(model, inputs, **case.options).measure([first], method="exact")
    for one, other in zip(found.rows(), expected.rows(), strict=True):
        assert one[1].value == pytest.approx(other[1].value, rel=1e-12)
    assert found.trace.value != pytest.approx(before, rel=1e-3)
    # Neither kernel changes or counts what the other spends.
    assert first.trace("exact").value == pytest.approx(before, rel=1e-12)
    spent = later.cost
    first.trace("exact")
    assert later.cost == spent


def test_buffers_that_changed_are_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = _random(5, 4)
    model(x)
    model.eval()
    first = NTK(model, x)
    first.trace("exact")
    # Too small a change for a comparison of states to see.
    model[1].running_var.mul_(1 + 1e-10)
    later = first.at(model)
    assert later.engine._samples is None
    assert later.trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-12)


def test_another_way_through_the_model_is_seen() -> None:
    model = Function(
        lambda m, x: m.b(m.a(x).tanh() if m.depth else m.a(x)), a=nn.Linear(4, 3), b=nn.Linear(3, 2)
    )
    model.double().depth = 0
    x = _random(5, 4)
    first = NTK(model, x)
    first.trace("exact")
    model.depth = 1
    assert first.at(model).trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-12)


def test_coupled_samples_and_unknown_structure() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    x = _random(5, 4)
    first = NTK(model, x)
    assert first.at(model).trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-9)
    first.trace("exact")
    _train(model)
    assert first.at(model).trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-9)


def test_options_are_kept() -> None:
    gru, x = nn.GRU(3, 4).double(), _random(5, 2, 3)
    first = NTK(gru, x, outputs=lambda y: y[0], batch_dim=1, memory=1 << 20, chunk_size=7)
    later = first.at(gru)
    assert (later.output_shape, later.memory) == (first.output_shape, first.memory)
    assert later.trace("exact").value == pytest.approx(first.trace("exact").value, rel=1e-12)
    tapped = NTK(nn.Sequential(gru), x, layer="0", outputs=lambda y: y[1][0], batch_dim=1)
    assert tapped.at(nn.Sequential(gru)).output_shape == (2, 4)


def test_a_state_of_another_shape_is_refused() -> None:
    first = NTK(nn.Linear(3, 2), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"has shape \(4, 5\) now, expected \(4, 2\); make a new NTK"):
        first.at(nn.Linear(3, 5))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        first.at("model")  # type: ignore[arg-type]


def test_a_model_of_other_parameters_is_traced_anew() -> None:
    x = _random(4, 3)
    first = NTK(nn.Sequential(nn.Linear(3, 2)).double(), x)
    first.trace("exact")
    other = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    assert first.at(other).trace("exact").value == pytest.approx(dense(other, x).trace, rel=1e-9)
