"""Blocks of well-known architectures, small, written as their papers and libraries write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Function

__all__ = ["ARCHITECTURES"]


class _RMSNorm(nn.Module):
    """With a gain, by hand, as T5 and Llama have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(1 + 0.3 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class _Attention(nn.Module):
    """Self-attention with an optional bias of the scores, by relative position."""

    def __init__(self, width: int, heads: int = 2, bias: bool = True, table: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.table = nn.Parameter(torch.randn(table, heads)) if table else None

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        batch, steps, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        scores = split(self.query(x)) @ split(self.key(x)).transpose(-1, -2) / math.sqrt(width)
        if self.table is not None and places is not None:
            bias = self.table[places.view(-1)].view(steps, steps, -1).permute(2, 0, 1)
            scores = scores + bias.contiguous().unsqueeze(0)
        mixed = scores.softmax(-1) @ split(self.value(x))
        return self.out(mixed.transpose(1, 2).reshape(batch, steps, width))


def _waves(time: Tensor, width: int = 4) -> Tensor:
    """Sines and cosines of a time."""
    angles = time[:, None] * 10.0 ** -torch.arange(width // 2).to(time)
    return torch.cat([angles.cos(), angles.sin()], -1)


def _unet() -> nn.Module:
    """A residual block with a time embedding, attention, a skip connection and an upsampling."""

    def residual(m: Any, x: Tensor, time: Tensor) -> Tensor:
        h = m.first(F.silu(m.norm(x))) + m.time(F.silu(time))[:, :, None, None]
        return m.skip(x) + m.second(F.silu(h))

    def block(entering: int, leaving: int) -> nn.Module:
        return Function(
            residual,
            norm=nn.GroupNorm(2, entering),
            first=nn.Conv2d(entering, leaving, 3, padding=1),
            time=nn.Linear(4, leaving),
            second=nn.Conv2d(leaving, leaving, 3, padding=1),
            skip=nn.Conv2d(entering, leaving, 1),
        )

    def run(m: Any, x: Tensor, time: Tensor) -> Tensor:
        time = m.embed(_waves(time))
        fine = m.down(m.entry(x), time)
        coarse = m.middle(m.shrink(fine), time)
        mixed = coarse + m.attention(coarse.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(coarse.shape)
        grown = F.interpolate(mixed, scale_factor=2.0, mode="nearest")
        return m.exit(m.up(torch.cat([grown, fine], 1), time))

    return Function(
        run,
        embed=nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4)),
        entry=nn.Conv2d(1, 2, 3, padding=1),
        down=block(2, 2),
        shrink=nn.Conv2d(2, 2, 3, stride=2, padding=1),
        middle=block(2, 4),
        attention=_Attention(4),
        up=block(6, 2),
        exit=nn.Conv2d(2, 1, 1),
    )


def _dit() -> nn.Module:
    """Patches with a position table, a block modulated by time and class (adaLN), and the way back."""

    def run(m: Any, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        tokens = m.patches(x).flatten(2).transpose(1, 2) + m.position
        condition = m.time(_waves(time)) + m.label(label)
        parts = m.modulation(F.silu(condition)).chunk(6, dim=1)
        shift, scale, gate, shift_2, scale_2, gate_2 = (part.unsqueeze(1) for part in parts)
        tokens = tokens + gate * m.attention(m.norm(tokens) * (1 + scale) + shift)
        tokens = tokens + gate_2 * m.mlp(m.norm(tokens) * (1 + scale_2) + shift_2)
        return m.out(tokens).view(len(x), 2, 2, 2, 2).permute(0, 1, 3, 2, 4).reshape(len(x), 4, 4)

    return Function(
        run,
        patches=nn.Conv2d(1, 4, 2, 2),
        position=torch.randn(1, 4, 4),
        time=nn.Linear(4, 4),
        label=nn.Embedding(3, 4),
        modulation=nn.Linear(4, 24),
        norm=nn.LayerNorm(4, elementwise_affine=False),
        attention=_Attention(4),
        mlp=nn.Sequential(nn.Linear(4, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 4)),
        out=nn.Linear(4, 4),
    )


def _t5() -> nn.Module:
    """RMS norms, no biases, a relative bias by buckets and a gated feed-forward layer."""

    def run(m: Any, tokens: Tensor) -> Tensor:
        steps = torch.arange(tokens.shape[1])
        buckets = (steps[None] - steps[:, None]).clamp(-2, 2) + 2
        x = m.words(tokens)
        x = x + m.attention(m.first(x), buckets)
        h = m.second(x)
        x = x + m.out(F.gelu(m.gate(h)) * m.up(h))
        return m.head(m.last(x))

    return Function(
        run,
        words=nn.Embedding(6, 4),
        attention=_Attention(4, bias=False, table=5),
        first=_RMSNorm(4),
        second=_RMSNorm(4),
        gate=nn.Linear(4, 6, bias=False),
        up=nn.Linear(4, 6, bias=False),
        out=nn.Linear(6, 4, bias=False),
        last=_RMSNorm(4),
        head=nn.Linear(4, 3, bias=False),
    )


def _whisper() -> nn.Module:
    """Two convolutions over time, positions and an encoder block."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = F.gelu(m.second(F.gelu(m.first(x)))).permute(0, 2, 1) + m.position
        x = x + m.attention(m.norm(x))
        return m.last(x + m.mlp(m.norm_2(x)))

    return Function(
        run,
        first=nn.Conv1d(3, 4, 3, padding=1),
        second=nn.Conv1d(4, 4, 3, stride=2, padding=1),
        position=torch.randn(4, 4),
        norm=nn.LayerNorm(4),
        norm_2=nn.LayerNorm(4),
        last=nn.LayerNorm(4),
        attention=_Attention(4),
        mlp=nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
    )


def _routes(m: Any, x: Tensor) -> Tensor:
    """How much of each expert every token takes: the best two, dense."""
    share = m.router(x).softmax(-1)
    least = share.topk(2, -1).values[..., -1:].detach()
    share = torch.where(share >= least, share, 0.0)
    return share / share.sum(-1, keepdim=True)


def _experts_by_bmm(m: Any, x: Tensor) -> Tensor:
    tokens = x.reshape(1, -1, x.shape[-1]).expand(len(m.up), -1, -1)
    y = torch.bmm(F.silu(torch.bmm(tokens, m.gate)) * torch.bmm(tokens, m.up), m.down)
    return (y * _routes(m, x).flatten(0, -2).T[..., None]).sum(0).view(x.shape)


def _experts_by_einsum(m: Any, x: Tensor) -> Tensor:
    inner = F.silu(torch.einsum("btd,edf->betf", x, m.gate)) * torch.einsum("btd,edf->betf", x, m.up)
    return torch.einsum("betf,efd,bte->btd", inner, m.down, _routes(m, x))


def _experts_one_by_one(m: Any, x: Tensor) -> Tensor:
    share, total = _routes(m, x), torch.zeros_like(x)
    for expert in range(len(m.up)):
        inner = F.silu(x @ m.gate[expert]) * (x @ m.up[expert])
        total = total + share[..., expert : expert + 1] * (inner @ m.down[expert])
    return total


def _mixtral(experts: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    def run(m: Any, tokens: Tensor) -> Tensor:
        x = m.words(tokens)
        x = x + m.attention(m.first(x))
        return m.head(m.last(x + experts(m, m.second(x))))

    return lambda: Function(
        run,
        words=nn.Embedding(6, 4),
        first=_RMSNorm(4),
        attention=_Attention(4, bias=False),
        second=_RMSNorm(4),
        router=nn.Linear(4, 3, bias=False),
        gate=torch.randn(3, 4, 5),
        up=torch.randn(3, 4, 5),
        down=torch.randn(3, 5, 4),
        last=_RMSNorm(4),
        head=nn.Linear(4, 3, bias=False),
    )


def _convnext() -> nn.Module:
    """A depthwise convolution, layer norm over channels, LayerScale."""

    def channels_first(m: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normal = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return m.weight[:, None, None] * normal + m.bias[:, None, None]

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.norm(m.stem(x))
        h = m.wide(m.depthwise(x).permute(0, 2, 3, 1))
        x = x + (m.gamma * m.narrow(F.gelu(h))).permute(0, 3, 1, 2)
        return m.head(x.mean([-2, -1]))

    return Function(
        run,
        stem=nn.Conv2d(1, 4, 2, 2),
        norm=Function(channels_first, weight=torch.randn(4), bias=torch.randn(4)),
        depthwise=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        wide=nn.Linear(4, 8),
        narrow=nn.Linear(8, 4),
        gamma=torch.randn(4),
        head=nn.Linear(4, 3),
    )


def _swin() -> nn.Module:
    """Attention in shifted windows of 2 × 2 with a table of relative positions."""

    def run(m: Any, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        rows, columns = torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
        apart = [(axis.flatten()[:, None] - axis.flatten()[None]) + 1 for axis in (rows, columns)]
        h = torch.roll(m.norm(x), (-1, -1), (1, 2))
        windows = h.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        mixed = m.attention(windows.reshape(-1, 4, channels), apart[0] * 3 + apart[1])
        mixed = mixed.view(batch, height // 2, width // 2, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return x + torch.roll(mixed.reshape(x.shape), (1, 1), (1, 2))

    return Function(run, norm=nn.LayerNorm(4), attention=_Attention(4, table=9))


def _gpt2() -> nn.Module:
    """Conv1D, learned positions, and a head that is the table of words."""

    def conv1d(m: Any, x: Tensor) -> Tensor:
        flat = torch.addmm(m.bias, x.view(-1, x.size(-1)), m.weight)
        return flat.view(*x.shape[:-1], m.weight.shape[1])

    def run(m: Any, tokens: Tensor) -> Tensor:
        x = m.words(tokens) + m.positions(torch.arange(tokens.shape[1]))
        q, k, v = m.qkv(m.norm(x)).split(4, dim=2)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(m.last(x + m.out(F.gelu(m.up(x)))), m.words.weight)

    def layer(entering: int, leaving: int) -> nn.Module:
        return Function(conv1d, weight=torch.randn(entering, leaving), bias=torch.randn(leaving))

    return Function(
        run,
        words=nn.Embedding(6, 4),
        positions=nn.Embedding(4, 4),
        norm=nn.LayerNorm(4),
        qkv=layer(4, 12),
        up=layer(4, 8),
        out=layer(8, 4),
        last=nn.LayerNorm(4),
    )


def _images(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(*shape), torch.rand(shape[0]) * 10)


def _tokens() -> Tensor:
    return torch.randint(0, 6, (3, 4))


#: The model and its inputs, both from the global generator.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "unet": (_unet, _images(2, 1, 4, 4)),
    "dit": (_dit, lambda: (*_images(3, 1, 4, 4)(), torch.randint(0, 3, (3,)))),
    "t5": (_t5, _tokens),
    "whisper": (_whisper, lambda: torch.randn(3, 3, 8)),
    "mixtral-bmm": (_mixtral(_experts_by_bmm), _tokens),
    "mixtral-einsum": (_mixtral(_experts_by_einsum), _tokens),
    "mixtral-one-by-one": (_mixtral(_experts_one_by_one), _tokens),
    "convnext": (_convnext, lambda: torch.randn(3, 1, 6, 6)),
    "swin": (_swin, lambda: torch.randn(2, 4, 4, 4)),
    "gpt2": (_gpt2, _tokens),
}
