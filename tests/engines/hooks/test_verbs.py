"""What is asked of a kernel by hooks on layers besides its metrics: the same numbers, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ntkscope import NTK


def _kernels() -> tuple[NTK, NTK]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs = torch.randn(7, 5, dtype=torch.float64)
    return NTK(model, inputs, engine="hooks"), NTK(model, inputs)


def test_numbers_of_samples_are_those_of_a_traced_model() -> None:
    hooked, traced = _kernels()
    for name in ("squared_gradients", "diagonal"):
        found, expected = (getattr(kernel, name)("exact").values for kernel in (hooked, traced))
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    found, expected = (kernel.split(by="sample", method="exact").whole for kernel in (hooked, traced))
    assert found is not None
    assert expected is not None
    assert found.value == pytest.approx(expected.value, rel=1e-10)
    assert hooked.log_det(0.5, method="exact").value == pytest.approx(
        traced.log_det(0.5, method="exact").value, rel=1e-10
    )


@pytest.mark.parametrize("by", ["layer", "parameter", {"a": "0.weight", "b": "*"}], ids=str)
@pytest.mark.parametrize("method", ["exact", "per-sample"])
def test_splits_are_those_of_a_traced_model(by: Any, method: str) -> None:
    hooked, traced = _kernels()
    limits: dict[str, Any] = {"products": 5} if method == "per-sample" else {}
    for metric in ("trace", "frobenius_norm"):
        found, expected = (
            kernel.split(metric, by=by, method=method, **limits) for kernel in (hooked, traced)
        )
        assert list(found.parts) == list(expected.parts)
        for name, part in expected.parts.items():
            assert found.parts[name].value == pytest.approx(part.value, rel=1e-9)
            assert found.parts[name].stderr == pytest.approx(part.stderr, rel=1e-6)


def test_alignments_of_parts_are_those_of_a_traced_model() -> None:
    hooked, traced = _kernels()
    for limits in ({"method": "exact"}, {"method": "per-sample", "products": 6}):
        found, expected = (kernel.part_alignments(**limits).values for kernel in (hooked, traced))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


PRODUCTS: dict[str, Callable[[NTK], Any]] = {
    "targets": lambda ntk: ntk.target_alignment(torch.arange(7) % 3),
    "speed": lambda ntk: ntk.loss_speed(lambda h: h.square().sum()),
    "cross": lambda ntk: ntk.cross(torch.randn(2, 5).double()),
    "eigenvalues": lambda ntk: ntk.eigenpairs(2, method="krylov"),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_goes_by_products_is_refused(name: str) -> None:
    with pytest.raises(NotImplementedError, match="no products with the whole Jacobian"):
        PRODUCTS[name](_kernels()[0])


@pytest.mark.parametrize("options", [{"loss": "mse"}, {"scale": {"0.weight": 2.0}}], ids=str)
def test_weighted_states_need_a_model_that_is_traced(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs a model that is traced"):
        NTK(nn.Linear(2, 1), torch.eye(2), engine="hooks", **options)
