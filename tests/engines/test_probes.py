"""One-hot probes: rows of the identity, among rows of zeros."""

from __future__ import annotations

import torch

from ntkscope.engines.torch.probes import one_hot

CPU = torch.device("cpu")


def test_rows_of_the_identity() -> None:
    identity = torch.eye(5, dtype=torch.float64)
    places = torch.tensor([3, 0, 3])
    assert torch.equal(one_hot(places, 5, torch.float64, CPU), identity[places])
    assert one_hot(places[:0], 5, torch.float32, CPU).shape == (0, 5)


def test_rows_among_others_are_zero() -> None:
    found = one_hot(torch.tensor([1, 2]), 3, torch.float32, CPU, start=1, rows=4)
    expected = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.float32)
    assert torch.equal(found, expected)
