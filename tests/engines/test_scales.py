"""Exact metrics of models far from scale 1: those of float64, or an error; never an exact inf or 0."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inside import moments_by
from ntkscope import NTK
from reference import dense

WAYS = ["exact (tiles)", "exact (rows)"]
KINDS = ["mlp", "convolution", "sequence"]


class _Scaled(nn.Module):
    """A model whose state comes in another unit."""

    def __init__(self, body: nn.Module, scale: float) -> None:
        super().__init__()
        self.body, self.scale = body, scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) * self.scale
        return y


def _body(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 4)
    if kind == "convolution":
        layers = (nn.Conv1d(2, 4, 3), nn.LayerNorm(6), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3))
        return nn.Sequential(*layers), torch.randn(5, 2, 8)
    return nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 2)), torch.randn(4, 3, 12)


def _wide(model: nn.Module, x: Tensor) -> Any:
    return dense(copy.deepcopy(model).double(), x.double()).kernel.numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-21, 1e-12, 1e12, 3e18])
def test_float32(kind: str, scale: float) -> None:
    body, x = _body(kind)
    model = _Scaled(body, scale)
    kernel = _wide(model, x)
    ntk = NTK(model, x)
    assert ntk.trace(method="exact").value == pytest.approx(np.trace(kernel), rel=2e-5, abs=0)
    for way in WAYS:
        moments = moments_by(way, [ntk, ntk])
        assert moments.traces[1] == pytest.approx(np.trace(kernel), rel=2e-5, abs=0)
        np.testing.assert_allclose(moments.inner, np.sum(kernel**2), rtol=2e-5)
    rank = np.trace(kernel) ** 2 / np.sum(kernel**2)
    assert ntk.effective_rank(method="exact").value == pytest.approx(rank, rel=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [2.0**8, 2.0**-8])
def test_float16(kind: str, scale: float) -> None:
    """As far as float16 tells the gradients, whose squares leave its range on both sides."""
    body, x = _body(kind)
    model = _Scaled(body, scale).half()
    kernel = _wide(model, x.half())
    ntk = NTK(model, x.half())
    for way in WAYS:
        moments = moments_by(way, [ntk])
        assert moments.traces[0] == pytest.approx(np.trace(kernel), rel=0.02, abs=0)
        assert moments.inner[0, 0] == pytest.approx(np.sum(kernel**2), rel=0.04, abs=0)


@pytest.mark.parametrize("batch_dim", [0, None])
@pytest.mark.parametrize("metric", ["trace", "frobenius_norm"])
def test_what_underflows_in_float16_is_told(metric: str, batch_dim: int | None) -> None:
    body, x = _body("mlp")
    ntk = NTK(_Scaled(body, 1e-9).half(), x.half(), batch_dim=batch_dim)
    found = getattr(ntk, metric)(method="exact")
    assert found.value == 0
    assert "a wider dtype tells" in found.note


@pytest.mark.parametrize("scale", [1e80, 1e100, 1e150])
@pytest.mark.parametrize("metric", ["frobenius_norm", "effective_rank"])
def test_beyond_float64(metric: str, scale: float) -> None:
    body, x = _body("mlp")
    ntk = NTK(_Scaled(body.double(), scale), x.double())
    with pytest.raises(ValueError, match=r"is not finite, .* leave the range of its dtype; bring"):
        getattr(ntk, metric)(method="exact")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_kernels_beyond_their_dtype_are_not_formed(scale: float) -> None:
    body, x = _body("mlp")
    ntk = NTK(_Scaled(body, scale), x)
    with pytest.raises(ValueError, match=r"largest entry of the kernel .* beyond the range of"):
        ntk.to_dense()
    kernel = _wide(_Scaled(body, scale), x)
    assert ntk.trace(method="exact").value == pytest.approx(np.trace(kernel), rel=2e-5, abs=0)


class _Centred(nn.Module):
    """Differences alone are seen of a layer of inputs that are far from zero."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        if self.kind == "mean":
            return (y - y.mean(1, keepdim=True)) * torch.arange(1, 17)
        return y - y.flip(1) + y[..., :1] * 1e-3 if self.kind == "mirror" else y.diff(n=2, dim=1)


@pytest.mark.parametrize("kind", ["mean", "mirror", "second differences"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_offsets(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    offset, rtol = (2e3, 2e-3) if dtype == torch.float32 else (1e6, 1e-7)
    model, x = _Centred(kind).to(dtype), (torch.randn(3, 8, 24) + offset).to(dtype)
    ntk, kernel = NTK(model, x), _wide(model, x)
    assert ntk.trace(method="exact").value == pytest.approx(np.trace(kernel), rel=rtol)
    assert moments_by("exact (tiles)", [ntk]).inner[0, 0] == pytest.approx(np.sum(kernel**2), rel=rtol)
    norms = np.diagonal(kernel)
    difference = np.abs(ntk.to_dense().double().numpy() - kernel) / np.sqrt(np.outer(norms, norms))
    assert np.max(difference) < rtol


@pytest.mark.parametrize(
    ("dtype", "digits"), [(torch.float64, 7), (torch.float32, 7), (torch.float16, 3), (torch.bfloat16, 2)]
)
def test_exact_numbers_have_the_digits_of_their_dtype(dtype: torch.dtype, digits: int) -> None:
    body, x = _body("mlp")
    found = NTK(body.to(dtype), x.to(dtype)).measure(method="exact")
    for _, estimate in found.rows():
        assert estimate.epsilon == torch.finfo(dtype).eps
        assert estimate.value_text() == f"{estimate.value:.{digits}g}"
