"""Blocks with the habits of real code: closures, hooks, caches, ties, writes in place."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.profiler import record_function

from fuzz.blocks_layers import Block

__all__ = ["HABITS", "Pair"]


class Pair(nn.Module):
    """Two layers, and a way of using them that is made once for all."""

    def __init__(self, width: int, way: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(width, width), nn.Linear(width, width), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way is None:
            return self.last(torch.tanh(self.first(x)))
        return self.way(self, x)


def _pair(way: Callable[[Any, Tensor], Tensor]) -> Block:
    return lambda width: Pair(width, way)


def _lambda_over_self(width: int) -> nn.Module:
    pair = Pair(width)
    act = lambda x: torch.tanh(pair.first(x))  # noqa: E731
    pair.way = lambda self, x: self.last(act(x))
    return pair


def _bound_partial(width: int) -> nn.Module:
    class Partial(Pair):
        def scaled(self, x: Tensor, scale: float) -> Tensor:
            return self.last(torch.sin(scale * self.first(x)))

    pair = Partial(width)
    act = functools.partial(pair.scaled, scale=0.7)
    pair.act = act  # type: ignore[assignment]
    pair.way = lambda self, x: self.act(x)
    return pair


def _vmapped_method(width: int) -> nn.Module:
    pair = Pair(width)
    each = torch.vmap(lambda row: pair.last(torch.tanh(pair.first(row))))
    pair.way = lambda self, x: each(x)
    return pair


def _patched_forward(width: int) -> nn.Module:
    pair = Pair(width)
    plain = pair.first.forward
    pair.first.forward = lambda x: plain(x) + pair.last(x)  # type: ignore[method-assign]
    return pair


def _patched_method(width: int) -> nn.Module:
    pair = Pair(width)
    pair.forward = types.MethodType(  # type: ignore[method-assign]
        lambda self, x: self.last(F.silu(self.first(x))), pair
    )
    return pair


def _hook(width: int) -> nn.Module:
    pair, adapter = Pair(width), nn.Linear(width, width)
    pair.adapter = adapter
    pair.first.register_forward_hook(lambda module, args, out: out + adapter(args[0]))
    return pair


def _pre_hook(width: int) -> nn.Module:
    pair, scale = Pair(width), nn.Parameter(torch.randn(width))
    pair.scale = scale
    pair.first.register_forward_pre_hook(lambda module, args: (args[0] * scale,))
    return pair


def _local_hook(width: int) -> nn.Module:
    pair = Pair(width)
    pair.last.register_forward_hook(lambda module, args, out: out * module.bias)
    return pair


def _requires_grad_hook(width: int) -> nn.Module:
    pair = Pair(width)
    pair.first.requires_grad_(False)
    pair.first.register_forward_hook(lambda module, args, out: out.requires_grad_(True))
    return pair


def _backward_hook(width: int) -> nn.Module:
    """A gradient that is halved on its way by a hook on the tensor."""

    def way(self: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: 0.5 * grad)
        return self.last(hidden)

    return Pair(width, way)


def _weights_in_list(width: int) -> nn.Module:
    pair = Pair(width)
    weights = [pair.first.weight, pair.last.weight]
    pair.way = lambda self, x: torch.tanh(x @ weights[0].T) @ weights[1].T
    return pair


def _weights_by_name(width: int) -> nn.Module:
    pair = Pair(width)
    pair.table = dict(pair.named_parameters())  # type: ignore[assignment]
    pair.way = lambda self, x: F.linear(x, self.table["first.weight"], self.table["last.bias"])
    return pair


def _weight_in_partial(width: int) -> nn.Module:
    pair = Pair(width)
    pair.project = functools.partial(F.linear, weight=pair.first.weight)  # type: ignore[assignment]
    pair.way = lambda self, x: self.last(self.project(x))
    return pair


def _parameter_list(width: int) -> nn.Module:
    pair = Pair(width, lambda self, x: sum(torch.sin(x * p) for p in self.scales))  # type: ignore[arg-type]
    pair.scales = nn.ParameterList(torch.randn(width) for _ in range(3))
    return pair


def _parameter_dict(width: int) -> nn.Module:
    pair = Pair(width, lambda self, x: x @ self.heads["a"] + self.heads["b"])
    pair.heads = nn.ParameterDict({"a": torch.randn(width, width), "b": torch.randn(width)})
    return pair


def _tied(width: int) -> nn.Module:
    pair = Pair(width)
    pair.last.weight = pair.first.weight
    return pair


def _partly_frozen(width: int) -> nn.Module:
    pair = Pair(width)
    pair.first.weight.requires_grad_(False)
    pair.last.bias.requires_grad_(False)
    return pair


def _cached(self: Any, x: Tensor) -> Tensor:
    if getattr(self, "kept", None) is None:
        self.kept = self.first.weight @ self.last.weight
    return torch.tanh(x @ self.kept)


def _keeps_activations(self: Any, x: Tensor) -> Tensor:
    self.seen = torch.tanh(self.first(x))
    return self.last(self.seen)


def _counts(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.last(self.first(x))


def _parametrized(register: Callable[[nn.Module], object]) -> Block:
    def build(width: int) -> nn.Module:
        pair = Pair(width)
        register(pair.first)
        return pair.eval()

    return build


class _Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def _in_place(self: Any, x: Tensor) -> Tensor:
    h = self.first(x)
    h += x
    h.relu_()
    h = self.last(h)
    h.mul_(0.5).add_(x)
    return h


def _in_place_power(self: Any, x: Tensor) -> Tensor:
    h = self.first(x)
    h **= 2
    return self.last(h)


def _writes_slices(self: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, ::2] = self.first(x)[:, :, ::2]
    out[:, 0] += self.last(x[:, -1])
    return out


def _masked_assignment(self: Any, x: Tensor) -> Tensor:
    h = self.first(x)
    h = h.clone()
    h[h < 0] = 0.1
    return self.last(h)


def _value_mask(self: Any, x: Tensor) -> Tensor:
    mask = x.detach()[:, :1, :1] > 0
    h = self.first(x)
    return torch.tanh(h if bool(mask.all()) else h * mask)


def _value_branch(self: Any, x: Tensor) -> Tensor:
    # Not by the sum over features: behind a layer norm its sign is that of a rounding.
    return self.first(x) if float(x.detach()[0, 0, 0]) > 0 else self.last(x).sin()


def _part_without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(self.first(x))
    return self.last(x) * gate + self.first(x)


def _straight_through(self: Any, x: Tensor) -> Tensor:
    h = torch.tanh(self.first(x))
    return self.last(h + (h.sign() - h).detach())


def _profiled(self: Any, x: Tensor) -> Tensor:
    with record_function("layers"):
        return self.last(self.first(x))


def _seeded_noise(self: Any, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(x.shape[-1], generator=generator, dtype=torch.float64).to(x.dtype)
    return self.last(torch.tanh(self.first(x) + noise))


def _twice(self: Any, x: Tensor) -> Tensor:
    return self.first(torch.tanh(self.first(x))) + x @ self.last.weight + self.last(x)


HABITS: dict[str, Block] = {
    "lambda over self": _lambda_over_self,
    "partial of a method": _bound_partial,
    "vmap of a method": _vmapped_method,
    "patched forward": _patched_forward,
    "patched method": _patched_method,
    "hook with an adapter": _hook,
    "pre-forward hook": _pre_hook,
    "hook on its module": _local_hook,
    "hook with requires_grad_": _requires_grad_hook,
    "hook on a gradient": _backward_hook,
    "weights in a list": _weights_in_list,
    "weights by name": _weights_by_name,
    "weight in a partial": _weight_in_partial,
    "parameter list": _parameter_list,
    "parameter dict": _parameter_dict,
    "tied": _tied,
    "partly frozen": _partly_frozen,
    "cached product": _pair(_cached),
    "keeps activations": _pair(_keeps_activations),
    "counts calls": _pair(_counts),
    "weight norm": _parametrized(parametrizations.weight_norm),
    "old weight norm": _parametrized(nn.utils.weight_norm),
    "spectral norm": _parametrized(parametrizations.spectral_norm),
    "orthogonal": _parametrized(parametrizations.orthogonal),
    "own parametrization": _parametrized(
        lambda layer: parametrize.register_parametrization(layer, "weight", _Symmetric())
    ),
    "pruned": _parametrized(lambda layer: prune.l1_unstructured(layer, "weight", amount=0.4)),
    "in place": _pair(_in_place),
    "in-place power": _pair(_in_place_power),
    "writes into slices": _pair(_writes_slices),
    "masked assignment": _pair(_masked_assignment),
    "mask by values": _pair(_value_mask),
    "branch by values": _pair(_value_branch),
    "no_grad inside": _pair(_part_without_gradient),
    "straight through": _pair(_straight_through),
    "profiled": _pair(_profiled),
    "seeded noise": _pair(_seeded_noise),
    "unused layer": _pair(lambda self, x: self.first(x)),
    "used twice": _pair(_twice),
}
