"""Blocks whose parameters are held, made or reached in ways of their own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize

from fuzz.blocks_habits import Pair
from fuzz.blocks_layers import Block, Fn

__all__ = ["WEIGHTS"]


class _TiedByProperty(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    @property
    def weight(self) -> Tensor:
        return self.inner.weight.T

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) @ self.weight.T


class _FlatParameter(nn.Module):
    """Views of one flat parameter, made in every call."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.flat = width, nn.Parameter(torch.randn(width * width + width) / 2)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.flat.split([self.width**2, self.width])
        return torch.tanh(F.linear(x, weight.view(self.width, self.width), bias))


class _Hyper(nn.Module):
    """A network that makes the weights of another from a learned code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.code, self.make = width, nn.Parameter(torch.randn(3)), nn.Linear(3, width * width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.make(torch.tanh(self.code)).view(self.width, self.width))


class _HyperOfInput(_Hyper):
    """Its weights come from the sample."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.make(torch.tanh(x.mean(1)[:, :3] + self.code)).view(-1, self.width, self.width)
        return torch.tanh(torch.bmm(x, weights))


class _OwnParameter(nn.Parameter):
    """A subclass of nn.Parameter, as frameworks that shard have."""


class _Subclassed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = _OwnParameter(torch.randn(width, width) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x @ self.weight)


class _Ensemble(nn.Module):
    """Members side by side by torch.func, their parameters stacked in every call."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.base = [copy.deepcopy(self.members[0]).to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        names = list(dict(self.members[0].named_parameters()))
        stacked = {
            name: torch.stack([dict(m.named_parameters())[name] for m in self.members]) for name in names
        }
        found: Tensor = vmap(lambda p: functional_call(self.base[0], p, (x,)))(stacked)
        return torch.tanh(found).mean(0)


class _StackedEnsemble(nn.Module):
    """Members whose stacked parameters are the ones that are trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        members = [nn.Linear(width, width) for _ in range(3)]
        stacked, _ = stack_module_state(members)
        self.weight, self.bias = (nn.Parameter(stacked[name].detach()) for name in ("weight", "bias"))
        self.base = [copy.deepcopy(members[0]).to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        call = lambda w, b: functional_call(self.base[0], {"weight": w, "bias": b}, (x,))  # noqa: E731
        found: Tensor = vmap(call)(self.weight, self.bias)
        return torch.tanh(found).prod(0)


class _ByKey(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a": nn.Linear(width, width), "b": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        found = {name: part(x) for name, part in self.parts.items()}
        return torch.sigmoid(found["a"]) * found["b"]


def _lazy(width: int) -> nn.Module:
    made = nn.Sequential(nn.LazyLinear(width), nn.Tanh())
    made(torch.zeros(1, width))
    return made


def _lora(width: int) -> nn.Module:
    pair = Pair(width, lambda self, x: self.first(x) + (x @ self.down) @ self.up)
    pair.first.requires_grad_(False)
    pair.last.requires_grad_(False)
    pair.down, pair.up = nn.Parameter(torch.randn(width, 1)), nn.Parameter(torch.randn(1, width))
    return pair


def _alias(width: int) -> nn.Module:
    """A view of the weight that was taken when the module was made."""
    pair = Pair(width).double()
    pair.alias = [pair.first.weight.T]
    pair.way = lambda self, x: torch.tanh(x @ self.alias[0]) + self.last(x)
    return pair


def _scaling_hook(width: int) -> nn.Module:
    pair = Pair(width)
    pair.first.register_forward_hook(lambda module, args, out: 0.3 * out)
    return pair


def _detaching_hook(width: int) -> nn.Module:
    pair = Pair(width, lambda self, x: self.last(torch.tanh(self.first(x))) + self.first(x))
    pair.first.register_forward_hook(lambda module, args, out: out.detach() + 0 * out if module.cut else out)
    pair.first.cut = True  # type: ignore[assignment]
    return pair


def _named_hook(width: int) -> nn.Module:
    pair = Pair(width)
    pair.last.register_forward_hook(
        lambda module, args, kwargs, out: out + args[0], with_kwargs=True, prepend=True
    )
    return pair


def _full_backward_hook(width: int) -> nn.Module:
    pair = Pair(width)
    pair.first.register_full_backward_hook(lambda module, into, out: None)
    return pair


def _partial_layer(width: int) -> nn.Module:
    pair = Pair(width)
    pair.act = functools.partial(F.leaky_relu, negative_slope=0.3)  # type: ignore[assignment]
    pair.way = lambda self, x: self.last(self.act(self.first(x)))
    return pair


def _parametrized_twice(width: int) -> nn.Module:
    pair = Pair(width)
    parametrizations.weight_norm(pair.first)
    parametrize.register_parametrization(pair.last, "weight", _Softplus())
    parametrize.register_parametrization(pair.last, "weight", _Skew())
    return pair


def _within_cached(width: int) -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        with parametrize.cached():
            return self.first(torch.tanh(self.first(x)))

    pair = Pair(width, way)
    parametrize.register_parametrization(pair.first, "weight", _Skew())
    return pair


class _Softplus(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return F.softplus(weight)


class _Skew(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - 0.5 * weight.mT


def _ways(way: Callable[[Any, Tensor], Tensor]) -> Block:
    return lambda width: Pair(width, way)


def _circulant(x: Tensor, w: Tensor) -> Tensor:
    places = (torch.arange(len(w))[:, None] - torch.arange(len(w))) % len(w)
    return torch.tanh(x @ w[places])


def _masked(self: Any, x: Tensor) -> Tensor:
    mask = torch.ones_like(self.first.weight).tril()
    return F.linear(x, self.first.weight * mask, self.first.bias)


def _standardised(self: Any, x: Tensor) -> Tensor:
    weight = self.first.weight
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.std(1, keepdim=True) + 1e-3)
    return F.linear(x, weight, self.first.bias)


def _values_alone(self: Any, x: Tensor) -> Tensor:
    scale = float(self.first.bias.detach()[0].cos())
    return self.last(scale * self.first(x)) + x @ self.last.weight.data


WEIGHTS: dict[str, Block] = {
    "tied by a property": _TiedByProperty,
    "views of a flat parameter": _FlatParameter,
    "hypernetwork": _Hyper,
    "hypernetwork of the sample": _HyperOfInput,
    "subclass of nn.Parameter": _Subclassed,
    "ensemble by functional_call": _Ensemble,
    "ensemble of stacked parameters": _StackedEnsemble,
    "modules by key": _ByKey,
    "lazy": _lazy,
    "low-rank adapter": _lora,
    "alias made before": _alias,
    "hook that scales": _scaling_hook,
    "hook that detaches": _detaching_hook,
    "hook with keywords": _named_hook,
    "full backward hook": _full_backward_hook,
    "partial of a function": _partial_layer,
    "parametrized twice": _parametrized_twice,
    "parametrized and cached": _within_cached,
    "circulant": lambda d: Fn(_circulant, w=(d,)),
    "masked weight": _ways(_masked),
    "standardised weight": _ways(_standardised),
    "normalised weight": _ways(
        lambda self, x: F.normalize(x, dim=-1) @ F.normalize(self.first.weight, dim=1).T + self.last(x)
    ),
    "values of parameters": _ways(_values_alone),
    "empty parameter": lambda d: Fn(lambda x, w, none: x * w + none.sum(), w=(d,), none=(0, d)),
    "scalar and single": lambda d: Fn(lambda x, a, b: torch.tanh(a * x) + b, a=(), b=(1,)),
    "output layer is the table": _ways(
        lambda self, x: (
            F.embedding((x.detach()[..., 0] > 0).long(), self.first.weight) + x @ self.first.weight.T
        )
    ),
    "solved": lambda d: Fn(
        lambda x, w: torch.linalg.solve(torch.eye(d, dtype=x.dtype) + 0.1 * w @ w.T, x.mT).mT, w=(d, d)
    ),
    "matrix exponential": lambda d: Fn(lambda x, w: x @ torch.linalg.matrix_exp(w - w.mT), w=(d, d)),
    "Cayley": lambda d: Fn(
        lambda x, w: (
            x
            @ torch.linalg.inv(torch.eye(d, dtype=x.dtype) + w - w.mT)
            @ (torch.eye(d, dtype=x.dtype) - w + w.mT)
        ),
        w=(d, d),
    ),
    "Householder": lambda d: Fn(lambda x, v: x - 2 * (x @ v)[..., None] * v / (v @ v), v=(d,)),
}
