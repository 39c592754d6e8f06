"""The meter: what a forward pass computes and writes."""

from __future__ import annotations

import torch
from torch import nn

from ntkscope import NTK
from ntkscope.engines.torch.meter import ForwardMeter, ForwardSize


def _size(model: nn.Module, *inputs: torch.Tensor) -> ForwardSize:
    with torch.no_grad(), ForwardMeter() as meter:
        model(*inputs)
    return meter.size()


def test_matrix_products_are_counted() -> None:
    size = _size(nn.Linear(20, 30), torch.ones(10, 20))
    assert size.flops == 2 * 10 * 20 * 30
    assert size.elements == 10 * 30
    assert size.operations == 1


def test_convolutions_are_counted() -> None:
    size = _size(nn.Conv2d(3, 4, 3, bias=False), torch.ones(2, 3, 6, 6))
    assert size.flops == 2 * (2 * 4 * 4 * 4) * (3 * 3 * 3)
    assert size.elements >= 2 * 4 * 4 * 4


def test_views_write_nothing() -> None:
    size = _size(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 4))), torch.ones(2, 4, 3))
    assert size == ForwardSize(0, 0, 0)


def test_elementwise_operations_write_without_flops() -> None:
    assert _size(nn.Tanh(), torch.ones(5, 7)) == ForwardSize(1, 35, 0)


def test_every_result_of_an_operation_is_counted() -> None:
    with ForwardMeter() as meter:
        torch.ones(4, 6).max(dim=1)
    # 24 ones, four values and four indices.
    assert meter.size().elements == 24 + 4 + 4


def test_counts_grow_with_the_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    one, ten = _size(model, torch.ones(1, 4)), _size(model, torch.ones(10, 4))
    assert ten.flops == 10 * one.flops
    assert ten.elements == 10 * one.elements
    assert ten.operations == one.operations


def test_nothing_outside_is_counted() -> None:
    meter = ForwardMeter()
    torch.ones(3) + 1
    with meter:
        torch.ones(3)
    torch.ones(3) + 1
    assert meter.size() == ForwardSize(1, 3, 0)


def test_a_kernel_knows_the_size_of_its_forward_pass() -> None:
    ntk = NTK(nn.Linear(20, 30), torch.ones(10, 20))
    assert ntk.engine.function.forward_size.flops == 2 * 10 * 20 * 30
