"""Kernels are compared on one batch: other inputs are refused, other names and forms of the same are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK, estimators, measure_all


def _body(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def _inputs() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x + 1, "differs in 5 of 5 rows"),
        (lambda x: x.roll(1, 0), "differs in 5 of 5 rows"),
        (lambda x: x.index_fill(0, torch.tensor([2, 4]), 0.0), "differs in 2 of 5 rows"),
    ],
    ids=["shifted", "shuffled", "blanked"],
)
def test_other_inputs_are_refused(change: Callable[[Tensor], Tensor], words: str) -> None:
    first, second = NTK(_body(), _inputs()), NTK(_body(1), change(_inputs()))
    message = rf"kernels are of different inputs \(input 0 {words}\); use the same batch for both"
    works: list[Callable[[], Any]] = [
        lambda: first.alignment(second),
        lambda: first.measure([second]),
        lambda: first.metric("inner_product", second),
        lambda: measure_all([first, second]),
        lambda: first.plan("alignment", [second]),
    ]
    for work in works:
        with pytest.raises(ValueError, match=message):
            work()


def test_matrices_and_estimators_compare_what_they_are_given() -> None:
    first, second = NTK(_body(), _inputs()), NTK(_body(), _inputs() + 1)
    by_matrix = first.alignment(second.to_dense(), method="exact").value
    assert estimators.alignment(first, second, "exact").value == pytest.approx(by_matrix, rel=1e-4)
    assert 0 < by_matrix < 1


class _Named(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.body(values.flatten(1).float())
        return y


def test_the_same_inputs_by_other_names_and_in_other_forms() -> None:
    body, x = _body(), _inputs()
    forms: list[Any] = [
        {"values": x.clone()},
        {"mask": torch.ones(5), "values": x.double()},
        x.reshape(5, 2, 2),
        (x.clone(), torch.ones(5)),
    ]
    kernels = [NTK(body, x), *(NTK(_Named(body), form) for form in forms)]
    for first, second in itertools.combinations(kernels, 2):
        assert first.alignment(second, method="exact").value == pytest.approx(1, rel=1e-5)


def test_later_in_training_the_inputs_are_the_same() -> None:
    model, x = _body(), _inputs()
    start = NTK(model, x)
    x += 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    assert start.at(model).alignment(start, method="exact").value < 1
