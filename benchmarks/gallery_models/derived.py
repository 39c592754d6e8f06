"""Weights derived from parameters, sparse tables, and what training mode does, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from benchmarks.gallery_models.base import Parts, entry


@entry(
    "Critic with spectral norm",
    "derived",
    "In training mode power iteration changes a buffer in every call: call `eval()`.",
    small={"batch": 2, "size": 4, "width": 2},
)
def critic(batch: int = 16, size: int = 32, width: int = 32) -> Parts:
    layers = [nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)]
    first, second = (parametrizations.spectral_norm(layer) for layer in layers)
    head = parametrizations.spectral_norm(nn.Linear(2 * width, 1))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), pool, head).eval()
    return model, torch.randn(batch, 3, size, size), {}


class FakeQuantised(nn.Linear):
    """Weights rounded to few levels, with a straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.detach().abs().amax() / 7
        rounded = (self.weight / scale).round() * scale
        return nn.functional.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


@entry(
    "Quantisation with a straight-through gradient",
    "derived",
    "The gradient skips the rounding by `detach()`: K is that of the gradient, as in training.",
    small={"batch": 2, "width": 3, "depth": 2},
    shown=(FakeQuantised,),
)
def quantised(batch: int = 128, width: int = 128, depth: int = 4) -> Parts:
    layers = [layer for _ in range(depth) for layer in (FakeQuantised(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(batch, width), {}


@entry(
    "Pruned network",
    "derived",
    "The weight is a parameter times a mask that is a buffer, computed in a hook before every call.",
    small={"batch": 2, "width": 4, "depth": 2},
)
def pruned(batch: int = 128, width: int = 128, depth: int = 4) -> Parts:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [prune.l1_unstructured(nn.Linear(width, width), "weight", 0.8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(batch, width), {}


class OrthogonalRNN(nn.Module):
    """A recurrence whose matrix stays orthogonal."""

    def __init__(self, entering: int, hidden: int, kind: str) -> None:
        super().__init__()
        self.inward = nn.Linear(entering, hidden)
        square = nn.Linear(hidden, hidden, bias=False)
        self.recurrent = parametrizations.orthogonal(square, orthogonal_map=kind)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], self.inward.out_features).to(x)
        for step in range(x.shape[1]):
            h = torch.tanh(self.inward(x[:, step]) + self.recurrent(h))
        return h


@entry(
    "Orthogonal recurrence",
    "derived",
    "The weight is a matrix exponential of a skew matrix, or one of two other maps; it is computed once "
    "however many steps use it.",
    small={"batch": 2, "steps": 3, "entering": 2, "hidden": 3},
    shown=(OrthogonalRNN,),
)
def orthogonal(
    batch: int = 32, steps: int = 20, entering: int = 8, hidden: int = 64, kind: str = "matrix_exp"
) -> Parts:
    return OrthogonalRNN(entering, hidden, kind), torch.randn(batch, steps, entering), {}


class Recommender(nn.Module):
    """Bags of items, summed, beside dense features (arXiv 1906.00091)."""

    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(items, width, mode="sum")
        self.dense = nn.Linear(13, width)
        self.top = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, items: Tensor, features: Tensor) -> Tensor:
        return self.top(torch.cat([self.bag(items), self.dense(features)], 1))


@entry(
    "Recommender with bags of embeddings",
    "derived",
    "A table of 50,000 rows of which a sample reads ten: its gradient is never formed.",
    small={"batch": 3, "items": 5, "width": 2},
    shown=(Recommender,),
)
def recommender(batch: int = 256, items: int = 50_000, width: int = 64) -> Parts:
    model = Recommender(items, width)
    return model, (torch.randint(items, (batch, 10)), torch.randn(batch, 13)), {}


class Routed(nn.Module):
    """A mixture of experts that gathers the tokens of each expert by a boolean mask."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            out[mask] = share[mask][:, None] * expert(x[mask])
        return out


@entry(
    "Experts routed by a boolean mask",
    "derived",
    "How many tokens an expert sees depends on values: of one sample each expert sees all of them, and what "
    "it was not given is left out.",
    small={"batch": 2, "tokens": 2, "width": 3, "experts": 2},
    shown=(Routed,),
)
def routed(batch: int = 32, tokens: int = 16, width: int = 64, experts: int = 4) -> Parts:
    return Routed(width, experts), torch.randn(batch, tokens, width), {}


class Autocast(nn.Module):
    """A network that chooses half precision by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.float32):
            y = self.inner(x)
        return self.head(y.to(x.dtype))


@entry(
    "Autocast inside",
    "derived",
    "Gradients are as coarse as bfloat16, and are judged by it; float64 is left alone.",
    small={"batch": 2, "width": 3},
    shown=(Autocast,),
)
def autocast(batch: int = 128, width: int = 128) -> Parts:
    return Autocast(width), torch.randn(batch, width), {}


@entry(
    "Batch norm in training mode",
    "derived",
    "Every output depends on the whole batch through its mean and variance: measured as a whole. `eval()` "
    "takes the running averages, and makes it cheap.",
    small={"batch": 3, "width": 3},
    coupled="does not run on a single sample",
)
def batch_norm(batch: int = 64, width: int = 64) -> Parts:
    model = nn.Sequential(
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10)
    )
    return model.train(), torch.randn(batch, width), {}
