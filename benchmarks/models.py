"""The models that the benchmarks run on: arXiv 2511.10796's three, and two of today's shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ntkscope.apps.digits import load_digits
from ntkscope.apps.paper import experiments
from ntkscope.apps.paper.experiments import Case, paper_gru, paper_mlp

__all__ = ["Case", "forward_and_backward", "mnist_mlps", "paper_gru", "paper_mlp", "resnet", "transformer"]


def forward_and_backward(case: Case) -> None:
    """One plain training step's work, the yardstick."""
    state = case.outputs(case.model(case.inputs)).sum()
    torch.autograd.grad(state, list(case.model.parameters()))


def mnist_mlps() -> tuple[Case, Case]:
    """784-256-256-10 before and after training, on 512 held-out digits."""
    return experiments.mnist_mlps(load_digits())


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
