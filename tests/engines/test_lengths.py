"""Lengths and distances, each tensor on its own and many as one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch import lengths
from ntkscope.engines.torch.lengths import (
    distance,
    furthest,
    joint_distance,
    joint_length,
    joint_sums,
    length,
)


def _tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (0,), (40_000,), (), (7,), (100, 500), (2, 2)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_they_are_those_of_all_entries_side_by_side() -> None:
    first, second = _tensors(0), _tensors(1)
    ours, theirs = (torch.cat([x.reshape(-1) for x in side]).double() for side in (first, second))
    assert joint_length(first) == pytest.approx(float(ours.norm()), rel=1e-13)
    assert joint_distance(first, second) == pytest.approx(float((ours - theirs).norm()), rel=1e-13)
    assert float(sum(total.double() for total in joint_sums(first))) == pytest.approx(
        float(ours.sum()), abs=0.1
    )
    for a, b in zip(first, second, strict=True):
        assert length(a) == pytest.approx(float(a.double().norm()), rel=1e-13)
        assert distance(a, b) == pytest.approx(float((a.double() - b.double()).norm()), rel=1e-13)
        if a.numel():
            assert furthest(a, b) == float((a.double() - b.double()).abs().max())
    assert joint_length([]) == joint_distance([], []) == 0.0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_small_and_large_numbers_are_not_lost(scale: float) -> None:
    values = [torch.tensor([3 * scale]), torch.tensor([4 * scale])]
    assert joint_length(values) == pytest.approx(5 * scale, rel=1e-6)
    assert joint_distance(values, [2 * v for v in values]) == pytest.approx(5 * scale, rel=1e-6)


def test_two_precisions() -> None:
    first = [torch.ones(3), torch.ones(2, dtype=torch.float64)]
    assert joint_length(first) == math.sqrt(5)
    assert joint_distance(first, [x.double() for x in first]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [2, 4, 6])
def test_one_number_that_is_not_finite_is_seen(bad: float, place: int) -> None:
    first, second = _tensors(0), _tensors(0)
    first[place].view(-1)[1] = bad
    assert not math.isfinite(joint_length(first))
    assert not math.isfinite(joint_distance(first, second))
    assert not all(bool(total.isfinite()) for total in joint_sums(first))


def test_small_tensors_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    own = lengths.length
    monkeypatch.setattr(lengths, "length", lambda x: calls.append(x.numel()) or own(x))
    joint_length([torch.ones(100) for _ in range(50)])
    assert calls == [5000]
