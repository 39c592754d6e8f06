"""Memory that reverse passes use again: the same numbers, and nothing that must live is overwritten."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from ntkscope import NTK
from ntkscope.engines.torch.reverse.workspace import Workspace


def test_what_was_lent_is_lent_again() -> None:
    memory, like = Workspace(), torch.zeros(())
    memory.begin()
    first, second = memory.empty((4, 5), like), memory.empty((3,), like)
    assert first.data_ptr() != second.data_ptr()
    memory.begin()
    again = memory.empty((2, 7), like)
    assert again.data_ptr() == first.data_ptr()
    assert again.shape == (2, 7)


def test_other_sizes_and_dtypes_are_made_anew() -> None:
    memory = Workspace()
    memory.begin()
    memory.empty((4,), torch.zeros(()))
    for shape, dtype in (((9,), torch.float32), ((9,), torch.float64), ((0,), torch.float32)):
        memory.begin()
        found = memory.empty(shape, torch.zeros((), dtype=dtype))
        assert (found.shape, found.dtype) == (shape, dtype)


def test_no_more_is_kept_than_allowed() -> None:
    memory, like = Workspace(100), torch.zeros(())
    memory.begin()
    memory.empty((20,), like)
    for _ in range(3):
        one, two = memory.empty((20,), like), memory.empty((20,), like)
        assert one.data_ptr() != two.data_ptr()
    assert memory._kept <= 100


@pytest.mark.parametrize("outputs", [3, 40])
def test_numbers_are_the_same_in_used_memory(outputs: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, outputs)).double()
    ntk = NTK(model, torch.randn(6, 5, dtype=torch.float64))
    exact = ntk.trace("exact").value
    dense = float(torch.as_tensor(ntk.to_dense()).trace())
    for seed in range(3):
        ntk.trace("per-sample", products=3, seed=seed)
        ntk.frobenius_norm("exact")
        assert ntk.trace("exact").value == exact
    assert exact == pytest.approx(dense, rel=1e-12)


def test_later_calls_fault_no_pages() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.ReLU())])
    ntk = NTK(model, torch.randn(40, 64))
    ntk.trace("exact")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ntk.trace("exact")
    # Output gradients alone take 64 * 40 * 64 * 16 numbers of 4 bytes, 2,560 pages.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1500
