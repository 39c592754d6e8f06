"""Blocks in whose forward pass values flow in ways of their own: cuts, choices, loops, containers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp, vjp
from torch.utils.checkpoint import checkpoint

from fuzz.blocks_habits import Pair
from fuzz.blocks_layers import Block, Fn

__all__ = ["FLOW"]


def _ways(way: Callable[[Any, Tensor], Tensor], **made: Callable[[int], Any]) -> Block:
    def build(width: int) -> nn.Module:
        pair = Pair(width, way)
        for name, make in made.items():
            value = make(width)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                pair.register_buffer(name, value)
            else:
                setattr(pair, name, value)
        return pair

    return build


@dataclass
class _Out:
    hidden: Tensor
    extra: dict[str, Any]


class _Named(NamedTuple):
    left: Tensor
    right: list[Tensor]


def _dataclass(self: Any, x: Tensor) -> Tensor:
    out = _Out(torch.tanh(self.first(x)), {"skip": [x, None]})
    return self.last(out.hidden) + out.extra["skip"][0]


def _named_tuple(self: Any, x: Tensor) -> Tensor:
    out = _Named(self.first(x), [torch.sin(x), x])
    return self.last(out.left * out.right[0]) - out.right[1]


def _scaled_gradient(self: Any, x: Tensor) -> Tensor:
    h = self.first(x)
    return self.last(torch.tanh(0.1 * h + (0.9 * h).detach()))


def _half_stopped(self: Any, x: Tensor) -> Tensor:
    h = self.first(x)
    half = h.shape[-1] // 2
    return self.last(torch.cat([h[..., :half].detach(), h[..., half:]], -1))


def _phantom(self: Any, x: Tensor) -> Tensor:
    """A fixed point without gradients, and one step with them."""
    z = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(20):
            z = torch.tanh(0.3 * self.first(z) + x)
    return torch.tanh(0.3 * self.first(z) + x)


def _equilibrium(self: Any, x: Tensor) -> Tensor:
    """A fixed point whose gradient a hook solves for."""
    step = lambda z: torch.tanh(0.3 * self.first(z) + x)  # noqa: E731
    with torch.no_grad():
        z = torch.zeros_like(x)
        for _ in range(60):
            z = step(z)
    z = step(z)
    if z.requires_grad:
        z0 = z.detach().clone().requires_grad_()
        with torch.enable_grad():
            again = step(z0)

        def solve(g: Tensor) -> Tensor:
            total = g
            for _ in range(60):
                total = torch.autograd.grad(again, z0, total, retain_graph=True)[0] + g
            return total

        z.register_hook(solve)
    return z


def _where(self: Any, x: Tensor) -> Tensor:
    return torch.where(x.detach() > 0, self.first(x), torch.exp(-self.last(x).abs()))


def _early_exit(self: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.tanh(self.first(x))
        if float(x.detach().abs().max()) < 0.2:
            break
    return x


def _lengths(self: Any, x: Tensor) -> Tensor:
    lengths = 1 + (x.detach()[:, :, 0] > 0).sum(1).clamp(max=x.shape[1] - 1)
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    return self.first(x) * mask[..., None]


def _loop_over_lengths(self: Any, x: Tensor) -> Tensor:
    rows = [self.first(row[: 1 + index % len(row)]).mean(0) for index, row in enumerate(x)]
    return torch.tanh(torch.stack(rows)[:, None] + x)


def _experts(self: Any, x: Tensor) -> Tensor:
    """Every position goes to the expert of its largest score."""
    scores = self.gate(x).softmax(-1)
    best, index = scores.max(-1)
    flat, out = x.reshape(-1, x.shape[-1]), torch.zeros_like(x).reshape(-1, x.shape[-1])
    for number, expert in enumerate((self.first, self.last)):
        places = (index.reshape(-1) == number).nonzero()[:, 0]
        out = out.index_add(0, places, expert(flat[places]) * best.reshape(-1)[places, None])
    return out.reshape(x.shape)


def _dense_experts(self: Any, x: Tensor) -> Tensor:
    values, index = self.gate(x).topk(1, dim=-1)
    gates = torch.zeros_like(x[..., :2]).scatter(-1, index, values.sigmoid())
    both = torch.stack([self.first(x), self.last(x)], -1)
    return torch.einsum("btde,bte->btd", both, gates)


def _routed(self: Any, x: Tensor) -> Tensor:
    order = x.detach()[..., 0].argsort(dim=1)
    sorted_x = torch.gather(x, 1, order[..., None].expand_as(x))
    return self.last(torch.tanh(self.first(sorted_x).cumsum(1)))


def _rotary(self: Any, x: Tensor) -> Tensor:
    h = self.first(x)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
    a, b = h[..., ::2], h[..., 1::2]
    turned = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
    return self.last(turned.flatten(-2))


def _forward_mode_inside(self: Any, x: Tensor) -> Tensor:
    value, slope = jvp(lambda y: torch.tanh(self.first(y)), (x,), (torch.ones_like(x),))
    return self.last(value) + slope


def _reverse_mode_inside(self: Any, x: Tensor) -> Tensor:
    value, pull = vjp(lambda y: torch.tanh(self.first(y)), x)
    return self.last(pull(value)[0])


def _hessian_inside(self: Any, x: Tensor) -> Tensor:
    energy = lambda y: torch.sin(self.first(y)).sum()  # noqa: E731
    return grad(lambda y: grad(energy)(y).pow(2).sum())(x)


def _moving_average(self: Any, x: Tensor) -> Tensor:
    """A buffer that is written to and not read."""
    with torch.no_grad():
        self.average.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)).to(self.average.dtype))
    return self.last(torch.tanh(self.first(x)))


def _fork_rng(self: Any, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        noise = torch.randn(x.shape[-1]).to(x.dtype)
    return self.last(self.first(x) * noise)


def _target_branch(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        target = F.normalize(self.last(x), dim=-1)
    return F.cosine_similarity(self.first(x), target, dim=-1)[..., None] * x


def _input_in_place(self: Any, x: Tensor) -> Tensor:
    h, x = self.first(x), x.clone()
    x[:, 0].mul_(2)
    x[..., 0] = h[..., 1]
    return self.last(torch.tanh(x))


def _nested_checkpoint(self: Any, x: Tensor) -> Tensor:
    inner = lambda y: checkpoint(lambda z: torch.tanh(self.first(z)), y, use_reentrant=False)  # noqa: E731
    return checkpoint(lambda y: self.last(inner(y)), x, use_reentrant=False)


def _windows(self: Any, x: Tensor) -> Tensor:
    padded = F.pad(x.mT, (1, 1), mode="replicate")
    return self.last(torch.tanh(padded.unfold(2, 3, 1)).mean(-1).mT) + self.first(x)


def _grouped_queries(self: Any, x: Tensor) -> Tensor:
    q = self.first(x).unflatten(-1, (2, -1)).transpose(1, 2)
    k = self.last(x)[..., :2].unflatten(-1, (1, -1)).transpose(1, 2).repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2)


def _weights_of_attention(self: Any, x: Tensor) -> Tensor:
    y, weights = self.attention(x, x, x, need_weights=True)
    return y + weights.sum(-2)[..., None] * x


def _prototypes(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(x, p.expand(len(x), -1, -1))) @ p


def _resized(self: Any, x: Tensor) -> Tensor:
    return F.interpolate(self.first(x).mT, scale_factor=2, mode="linear")[..., ::2].mT


FLOW: dict[str, Block] = {
    "dataclass inside": _ways(_dataclass),
    "named tuple inside": _ways(_named_tuple),
    "scaled gradient": _ways(_scaled_gradient),
    "half stopped": _ways(_half_stopped),
    "one step at a fixed point": _ways(_phantom),
    "equilibrium with a hook": _ways(_equilibrium),
    "where": _ways(_where),
    "early exit": _ways(_early_exit),
    "lengths by values": _ways(_lengths),
    "loop over samples": _ways(_loop_over_lengths),
    "experts": _ways(_experts, gate=lambda d: nn.Linear(d, 2)),
    "dense experts": _ways(_dense_experts, gate=lambda d: nn.Linear(d, 2)),
    "sorted by values": _ways(_routed),
    "rotary": _ways(_rotary),
    "forward mode inside": _ways(_forward_mode_inside),
    "reverse mode inside": _ways(_reverse_mode_inside),
    "Hessian inside": _ways(_hessian_inside),
    "moving average": _ways(_moving_average, average=lambda d: torch.zeros(d)),
    "seeds torch inside": _ways(_fork_rng),
    "target without gradient": _ways(_target_branch),
    "writes into a copy of its input": _ways(_input_in_place),
    "nested checkpoints": _ways(_nested_checkpoint),
    "windows": _ways(_windows),
    "grouped queries": _ways(_grouped_queries),
    "weights of attention": _ways(
        _weights_of_attention, attention=lambda d: nn.MultiheadAttention(d, 2, batch_first=True)
    ),
    "dropout of nothing": lambda d: nn.Sequential(nn.Linear(d, d), nn.Dropout(0.0), nn.Tanh()),
    "features of a buffer": _ways(
        lambda self, x: self.last(torch.cos(x @ self.features)), features=lambda d: torch.randn(d, d)
    ),
    "memory of a buffer": _ways(
        lambda self, x: (self.first(x) @ self.bank.T).softmax(-1) @ self.bank,
        bank=lambda d: torch.randn(5, d),
    ),
    "prototypes": lambda d: Fn(_prototypes, p=(5, d)),
    "clamped": _ways(lambda self, x: self.last(self.first(x).clamp(-0.3, 0.6))),
    "maxout": _ways(lambda self, x: torch.maximum(self.first(x), self.last(x))),
    "log of sums": _ways(lambda self, x: self.first(x) - torch.logsumexp(self.last(x), 1, keepdim=True)),
    "products along": lambda d: Fn(lambda x, w: torch.cumprod(1 + 0.1 * torch.tanh(x * w), 1), w=(d,)),
    "real spectrum": lambda d: Fn(
        lambda x, w: torch.fft.irfft(torch.fft.rfft(x, dim=-1) * w, n=d, dim=-1), w=(d // 2 + 1,)
    ),
    "resized": _ways(_resized),
    "bilinear layer": _ways(lambda self, x: self.form(x, self.first(x)), form=lambda d: nn.Bilinear(d, d, d)),
    "scattered": _ways(
        lambda self, x: (
            torch.zeros_like(x).scatter_add(1, torch.zeros_like(x, dtype=torch.long), self.first(x)) + x
        )
    ),
    "singular values": _ways(lambda self, x: x * torch.linalg.svdvals(self.first.weight)[0] + self.first(x)),
}
