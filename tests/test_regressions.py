"""Mistakes that were made once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inside import moments_by, refusal
from ntkscope import NTK
from ntkscope.engines.torch.samples.linearization import Linearization
from reference import dense
from zoo import BY_NAME, Function


def test_forward_products_see_padding_whatever_the_seed_of_the_weights() -> None:
    torch.manual_seed(0)
    layers = [nn.Embedding(4, 4, padding_idx=1), *(nn.LayerNorm(4) for _ in range(3))]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        model[0].weight.normal_()
    x = torch.tensor([[3], [1]])
    ntk = NTK(model, x)
    u = torch.randn(ntk.n_params, 2, generator=torch.Generator().manual_seed(9)).double()
    torch.testing.assert_close(ntk.jvp(u), dense(model, x).jacobian @ u)


@pytest.mark.filterwarnings("ignore:memory ran out:RuntimeWarning")
def test_per_sample_work_survives_running_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian = BY_NAME["mlp"].ntk().engine.samples().jacobian
    z = torch.randn(8, 12).double()
    usual = jacobian.squared_norms(z)
    original = Linearization.pull

    def pull(self: Linearization, z: Tensor, memory: Any = None) -> Any:
        if len(z) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, z, memory)

    monkeypatch.setattr(Linearization, "pull", pull)
    torch.testing.assert_close(jacobian.squared_norms(z), usual)


@pytest.mark.filterwarnings("ignore:memory ran out:RuntimeWarning")
def test_a_single_sample_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(self: Linearization, pieces: Any, memory: Any = None) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    jacobian = BY_NAME["mlp"].ntk().engine.samples().jacobian
    monkeypatch.setattr(Linearization, "pull_pieces", pull)
    with pytest.raises(MemoryError, match=r"a single sample with a single probe does not fit .*; free some"):
        jacobian.frobenius_squared()


def test_half_precision_does_not_overflow_by_parameters() -> None:
    ntk = NTK(nn.Linear(784, 2).half(), 20 * torch.ones(6, 784).half())
    inner = moments_by("exact (parameters)", [ntk]).inner
    assert inner[0, 0] == pytest.approx(72 * (784 * 400 + 1) ** 2, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": float("nan")},
        {"rtol": 0},
        {"rtol": -1},
        {"rtol": "a"},
        {"atol": -1},
        {"seconds": 0},
        {"seed": 0.5},
        {"seed": 1 << 70},
        {"max_products": 0},
    ],
    ids=str,
)
def test_arguments_are_checked_where_an_exact_way_is_taken_too(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        BY_NAME["mlp"].shared().trace(**options)


def test_memory_in_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory='a lot' is no size; write a number with B, KiB"):
        NTK(nn.Linear(2, 1), torch.ones(1, 2), memory="a lot")


def test_states_of_another_shape_are_refused() -> None:
    first = NTK(nn.Linear(5, 3).double(), torch.ones(4, 5).double())
    second = NTK(nn.Linear(5, 4).double(), torch.ones(3, 5).double())
    with pytest.raises(ValueError, match=r"state has shape \(3, 4\), expected \(4, 3\)"):
        first.alignment(second, "exact")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [(np.triu(np.ones((12, 12))), "is not symmetric"), (np.full((12, 12), np.nan), "not finite")],
    ids=["asymmetric", "nan"],
)
def test_matrices_are_checked(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BY_NAME["mlp"].shared().alignment(matrix)


def test_uses_with_other_groups_keep_the_structure() -> None:
    torch.manual_seed(0)
    weights = {"w": torch.randn(4, 2, 3)}
    model = Function(
        lambda m, x: torch.cat([F.conv1d(x[:, :2], m.w), F.conv1d(x, m.w, groups=2)], 1), **weights
    ).double()
    x = torch.randn(3, 4, 5).double()
    ntk = NTK(model, x)
    assert not refusal(ntk)
    assert ntk.trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-9)


def test_a_budget_beyond_the_exact_cost_is_exact() -> None:
    found = BY_NAME["mlp"].shared().trace(products=10**9)
    assert found.stderr == 0
