"""Blocks of layers: (B, T, D) to (B, T, D), each sample on its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LAYERS", "Block", "Ends", "Fn"]

#: Makes a block of this width; torch's generator is seeded before.
Block = Callable[[int], nn.Module]


class Ends(nn.Module):
    """A layer with something before and after it."""

    def __init__(
        self,
        layer: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer(self.before(x))
        return self.after(result[0] if isinstance(result, tuple) else result)


class Fn(nn.Module):
    """A function of parameters by name and of the input."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self._parameters)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class OwnAttention(nn.Module):
    """Causal attention written by hand, one projection for all three."""

    def __init__(self, width: int, *, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.fused:
            y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        else:
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(
                torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), float("-inf")
            )
            y = scores.softmax(-1) @ v
        return x + self.out(y)


class Cells(nn.Module):
    """A recurrence written as a loop over a cell, its state kept in a list."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, steps = None, []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(steps, dim=1)


class ClassToken(nn.Module):
    """A token that is put in front by expand and cat, mixed in, and taken off."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token, self.mix = nn.Parameter(torch.randn(1, 1, width)), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        y = torch.tanh(self.mix(y) + y.mean(1, keepdim=True))
        return y[:, 1:] + y[:, :1]


class Buckets(nn.Module):
    """Values sorted into buckets, each with its vector (a relative position bias, say)."""

    def __init__(self, width: int, **options: object) -> None:
        super().__init__()
        self.table = nn.Embedding(6, width, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        index = torch.bucketize(x.detach()[..., 0], torch.linspace(-1.5, 1.5, 5, dtype=x.dtype))
        return torch.tanh(x + self.table(index))


class Bags(nn.Module):
    """The sum of several vectors of a table, by an embedding bag."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(6, width, mode="sum")

    def forward(self, x: Tensor) -> Tensor:
        index = torch.bucketize(x.detach()[..., 0], torch.linspace(-1.5, 1.5, 5, dtype=x.dtype))
        return x + self.table(index)[:, None]


def _channels(layer: nn.Module) -> nn.Module:
    return Ends(layer, lambda x: x.mT, lambda y: y.mT)


def _flat(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).reshape(x.shape)


def _swish_glu(x: Tensor, gate: Tensor, value: Tensor) -> Tensor:
    return F.silu(x @ gate) * (x @ value)


def _positions(x: Tensor, table: Tensor) -> Tensor:
    return x + table[torch.arange(x.shape[1])]


def _max_pool(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight + x.max(dim=1, keepdim=True).values


def _top(x: Tensor, weight: Tensor) -> Tensor:
    y = x @ weight
    return y + torch.topk(y, 2, dim=-1).values.sum(-1, keepdim=True)


LAYERS: dict[str, Block] = {
    "linear": lambda d: nn.Linear(d, d),
    "linear without bias": lambda d: nn.Sequential(nn.Linear(d, d, bias=False), nn.ReLU()),
    "mlp": lambda d: nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, d)),
    "residual": Residual,
    "convolution": lambda d: _channels(nn.Conv1d(d, d, 3, padding=1)),
    "depthwise": lambda d: _channels(nn.Conv1d(d, d, 3, padding="same", groups=d)),
    "transposed convolution": lambda d: _channels(nn.ConvTranspose1d(d, d, 3, padding=1)),
    "2d convolution": lambda d: Ends(nn.Conv2d(1, 1, 3, padding=1), lambda x: x[:, None], lambda y: y[:, 0]),
    "layer norm": lambda d: nn.LayerNorm(d),
    "rms norm": lambda d: nn.RMSNorm(d),
    "group norm": lambda d: _channels(nn.GroupNorm(1, d)),
    "batch norm in eval": lambda d: _channels(nn.BatchNorm1d(d).eval()),
    "instance norm": lambda d: _channels(nn.InstanceNorm1d(d, affine=True)),
    "attention layer": lambda d: Ends(
        nn.TransformerEncoderLayer(d, 2, 5, dropout=0.0, batch_first=True).eval()
    ),
    "own attention": lambda d: OwnAttention(d, fused=False),
    "fused attention": lambda d: OwnAttention(d, fused=True),
    "gru": lambda d: Ends(nn.GRU(d, d, batch_first=True)),
    "lstm": lambda d: Ends(nn.LSTM(d, d, batch_first=True)),
    "two-way rnn": lambda d: Ends(nn.RNN(d, d // 2, batch_first=True, bidirectional=True)),
    "gru cell": lambda d: Cells(nn.GRUCell(d, d)),
    "lstm cell": lambda d: Cells(nn.LSTMCell(d, d)),
    "class token": ClassToken,
    "buckets": Buckets,
    "bags": Bags,
    "prelu": lambda d: nn.PReLU(),
    "bilinear": lambda d: Fn(lambda x, w: torch.tanh(torch.einsum("btd,def,btf->bte", x, w, x)), w=(d, d, d)),
    "einsum": lambda d: Fn(lambda x, w: torch.einsum("btd,ed->bte", x, w), w=(d, d)),
    "addmm": lambda d: Fn(_flat, weight=(d, d), bias=(d,)),
    "bmm": lambda d: Fn(lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)), w=(d, d)),
    "layer scale": lambda d: Fn(lambda x, scale: x + scale * torch.sin(x), scale=(d,)),
    "gate": lambda d: Fn(_swish_glu, gate=(d, d), value=(d, d)),
    "positions": lambda d: Fn(_positions, table=(7, d)),
    "pool": lambda d: Fn(_max_pool, weight=(d,)),
    "top k": lambda d: Fn(_top, weight=(d, d)),
    "cumulated": lambda d: Fn(lambda x, w: torch.tanh((x * w).cumsum(1)), w=(d,)),
    "temperature": lambda d: Fn(lambda x, t: torch.softmax(x / (1 + t * t), -1) + x, t=()),
    "low rank": lambda d: Fn(lambda x, a, b: x + F.linear(x, a @ b), a=(d, 2), b=(2, d)),
    "kronecker": lambda d: Fn(lambda x, a, b: x @ torch.kron(a, b), a=(2, 2), b=(d // 2, d // 2)),
}
