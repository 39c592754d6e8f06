"""Losses, scales and other inputs with what is kept of a module, and with data that streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ntkscope import NTK


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def _jacobian(model: nn.Module, x: Tensor) -> Tensor:
    rows = [torch.autograd.grad(y, list(model.parameters()), retain_graph=True) for y in model(x).reshape(-1)]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def _fisher(model: nn.Module, x: Tensor) -> float:
    jacobian = _jacobian(model, x).reshape(len(x), 3, -1)
    p = model(x).softmax(1).detach()
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return float(torch.einsum("bip,bij,bjp->", jacobian, middle, jacobian)) / len(x)


def test_weights_of_a_loss_are_those_of_each_batch() -> None:
    """What was traced of a module serves its next kernel, with other inputs, losses and parameters."""
    model = _model()
    for seed in range(3):
        x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        plain = float(_jacobian(model, x).square().sum())
        assert NTK(model, x).trace("exact").value == pytest.approx(plain, rel=1e-12)
        weighted = NTK(model, x, loss="cross_entropy")
        assert weighted.trace("exact").value == pytest.approx(_fisher(model, x), rel=1e-12)
        summed = NTK(model, x, loss="cross_entropy", reduction="sum")
        assert summed.trace("exact").value == pytest.approx(6 * _fisher(model, x), rel=1e-12)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert weighted.at(model).trace("exact").value == pytest.approx(_fisher(model, x), rel=1e-12)


def test_a_scale_follows_the_parameters() -> None:
    model, x = _model(), torch.randn(6, 5, dtype=torch.float64)
    scale = {"0.weight": 0.3, "2.bias": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}

    def expected() -> float:
        d = torch.cat(
            [
                torch.ones_like(p).mul(torch.as_tensor(scale.get(name, 1.0), dtype=p.dtype)).reshape(-1)
                for name, p in model.named_parameters()
            ]
        )
        return float((_jacobian(model, x).square() * d).sum())

    kernel = NTK(model, x, scale=scale)
    assert kernel.trace("exact").value == pytest.approx(expected(), rel=1e-12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2)
    assert kernel.at(model).trace("exact").value == pytest.approx(expected(), rel=1e-12)
    assert NTK(model, x, scale=scale).trace("exact").value == pytest.approx(expected(), rel=1e-12)
    data = DataLoader(TensorDataset(x), batch_size=4)
    streamed = NTK(model, data, scale=scale)
    assert streamed.trace("exact").value == pytest.approx(expected(), rel=1e-12)


def test_data_that_streams() -> None:
    model, x, other = _model(), torch.randn(6, 5).double(), torch.randn(4, 5).double()
    data = DataLoader(TensorDataset(x), batch_size=3)
    with pytest.raises(ValueError, match="loss= weights the state of one batch"):
        NTK(model, data, loss="mse")
    cross = NTK(model, data).cross(other)
    expected = _jacobian(model, x) @ _jacobian(model, other).T
    assert torch.allclose(torch.as_tensor(cross.to_dense()), expected, rtol=1e-12)
    labels, whole = torch.arange(6) % 3, NTK(model, x)
    aligned = whole.target_alignment(labels, method="exact").value
    assert NTK(model, data).target_alignment(labels, method="exact").value == pytest.approx(aligned, rel=1e-9)
    speed = whole.loss_speed(lambda h: h.square().sum()).value
    assert NTK(model, data).loss_speed(lambda h: h.square().sum()).value == pytest.approx(speed, rel=1e-12)
