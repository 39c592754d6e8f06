"""Blocks that do more with autograd, that are complex, or in which samples are coupled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from fuzz.blocks_habits import Pair
from fuzz.blocks_layers import Block, Buckets, Ends, Fn

__all__ = ["AUTOGRAD", "COUPLED", "LOW_PRECISION"]


class _Sine(torch.autograd.Function):
    """In the old style, without setup_context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].cos()


class _OnceSine(_Sine):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].cos()


class _NumpySine(_Sine):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * torch.from_numpy(np.cos(ctx.saved_tensors[0].detach().numpy()))


class _NewSine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].cos()


class _CutSine(_NewSine):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].detach() * ctx.saved_tensors[0].cos()


class _Reversal(_NewSine):
    """A gradient that is not the derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -0.3 * grads[0]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, field: nn.Module, *parameters: Tensor) -> Tensor:
        ctx.field, ctx.parameters = field, tuple(field.parameters())
        ctx.save_for_backward(y)
        return y + 0.2 * field(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.enable_grad():
            y = ctx.saved_tensors[0].detach().requires_grad_()
            step = y + 0.2 * ctx.field(y)
        found = torch.autograd.grad(step, [y, *ctx.parameters], grads[0])
        return found[0], None, *found[1:]


def _custom(function: type[torch.autograd.Function]) -> Block:
    return lambda width: Pair(width, lambda self, x: self.last(function.apply(self.first(x))))


def _adjoint(self: Any, x: Tensor) -> Tensor:
    return self.last(_Adjoint.apply(x, self.first, *self.first.parameters()))


def _input_gradient(self: Any, x: Tensor) -> Tensor:
    """The gradient of an energy by the input, as forces and PINNs have it."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        energy = torch.sin(self.first(x)).pow(2).sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
    return self.last(force)


def _inner_step(self: Any, x: Tensor) -> Tensor:
    """A step of training inside, on data of its own."""
    data = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
    with torch.enable_grad():
        loss = torch.tanh(self.first.weight @ data).pow(2).sum()
        (step,) = torch.autograd.grad(loss, self.first.weight, create_graph=True)
    return self.last(x @ (self.first.weight - 0.3 * step))


def _func_gradient(self: Any, x: Tensor) -> Tensor:
    return self.last(grad(lambda y: torch.sin(self.first(y)).pow(2).sum())(x))


def _func_parameters(self: Any, x: Tensor) -> Tensor:
    values = dict(self.first.named_parameters())
    scaled = {name: 0.5 * value for name, value in values.items()}
    return self.last(functional_call(self.first, scaled, (x,)))


def _divergence(self: Any, x: Tensor) -> Tensor:
    def one(row: Tensor) -> Tensor:
        return jacrev(lambda y: torch.tanh(self.first(y)))(row).diagonal().sum()

    return self.last(x) + vmap(vmap(one))(x)[..., None]


def _checkpointed(self: Any, x: Tensor) -> Tensor:
    return self.last(checkpoint(lambda y: torch.tanh(self.first(y)), x, use_reentrant=False))


def _packed(width: int) -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.run(packed)[0], batch_first=True)[0]

    pair = Pair(width, way)
    pair.run = nn.GRU(width, width, batch_first=True)
    return pair


def _sparse(width: int) -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        flat = self.first(x).reshape(-1, x.shape[-1])
        return torch.sparse.mm(self.mixing, flat.T).T.reshape(x.shape)

    pair = Pair(width, way)
    pair.register_buffer("mixing", (torch.eye(width) + torch.diag(torch.ones(width - 1), 1)).to_sparse())
    return pair


def _spectral(x: Tensor, weight: Tensor) -> Tensor:
    return x + torch.fft.ifft(torch.fft.fft(x) * weight).real


def _poles(x: Tensor, pole: Tensor) -> Tensor:
    return (x * pole + x.to(pole.dtype) * pole.conj() ** 2).imag + x


class Complex(nn.Module):
    def __init__(self, function: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(width, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


AUTOGRAD: dict[str, Block] = {
    "old function": _custom(_Sine),
    "function differentiable once": _custom(_OnceSine),
    "function with NumPy": _custom(_NumpySine),
    "new function": _custom(_NewSine),
    "function that cuts": _custom(_CutSine),
    "gradient reversal": _custom(_Reversal),
    "adjoint": lambda d: Pair(d, _adjoint),
    "gradient by the input": lambda d: Pair(d, _input_gradient),
    "inner step": lambda d: Pair(d, _inner_step),
    "torch.func gradient": lambda d: Pair(d, _func_gradient),
    "functional call": lambda d: Pair(d, _func_parameters),
    "divergence": lambda d: Pair(d, _divergence),
    "checkpointed": lambda d: Pair(d, _checkpointed),
    "packed": _packed,
    "sparse buffer": _sparse,
    "complex spectrum": lambda d: Complex(_spectral, d),
    "complex poles": lambda d: Complex(_poles, d),
    "padded buckets": lambda d: Buckets(d, padding_idx=2),
    "buckets by frequency": lambda d: Buckets(d, scale_grad_by_freq=True),
    "log of cumulated": lambda d: Fn(lambda x, w: torch.logcumsumexp(x * w, 1), w=(d,)),
}


def _batch_mean(self: Any, x: Tensor) -> Tensor:
    return self.last(self.first(x) - 0.3 * x.mean(0, keepdim=True))


def _gradient_mean(self: Any, x: Tensor) -> Tensor:
    mean = self.first(x).mean(0, keepdim=True)
    return self.last(x + 0.1 * (mean - mean.detach()))


def _contrast(self: Any, x: Tensor) -> Tensor:
    flat = self.first(x).flatten(1)
    return self.last(x) * (flat @ flat.T).softmax(-1).diagonal()[:, None, None]


def _zero_gate(self: Any, x: Tensor) -> Tensor:
    """A parameter that is zero couples the last samples, in gradients alone."""
    late = (torch.arange(len(x)) >= len(x) - 2).to(x.dtype)[:, None, None]
    return self.first(x) + self.gate * late * (late * x).mean(0, keepdim=True)


def _gated(width: int) -> nn.Module:
    pair = Pair(width, _zero_gate)
    pair.gate = nn.Parameter(torch.zeros(width))
    return pair


def _fixed_batch(self: Any, x: Tensor) -> Tensor:
    assert len(x) == self.size, f"made for batches of {self.size}"
    return self.first(x)


def _for_this_batch(width: int) -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        if not hasattr(self, "size"):
            self.size = len(x)
        return _fixed_batch(self, x)

    return Pair(width, way)


COUPLED: dict[str, Block] = {
    "batch norm in training": lambda d: Ends(nn.BatchNorm1d(d), lambda x: x.mT, lambda y: y.mT),
    "batch mean": lambda d: Pair(d, _batch_mean),
    "batch mean of gradients": lambda d: Pair(d, _gradient_mean),
    "contrast": lambda d: Pair(d, _contrast),
    "gate that is zero": _gated,
    "one size of batch": _for_this_batch,
}


class Narrow(nn.Module):
    """A layer in lower precision, by casts or by autocast."""

    def __init__(self, width: int, *, autocast: bool) -> None:
        super().__init__()
        self.narrow, self.autocast = nn.Linear(width, width), autocast

    def forward(self, x: Tensor) -> Tensor:
        if self.autocast:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return torch.tanh(self.narrow(x.float())).to(x.dtype)
        return torch.tanh(self.narrow(x.float())).to(x.dtype)


def _quantised(self: Any, x: Tensor) -> Tensor:
    weight = torch.fake_quantize_per_tensor_affine(self.first.weight.float(), 0.1, 0, -8, 7)
    return F.linear(x, weight.to(x.dtype)) + self.last(x)


#: Blocks that round, and what that leaves of an exact number.
LOW_PRECISION: dict[str, tuple[Block, float]] = {
    "float32 inside": (lambda d: Narrow(d, autocast=False), 1e-5),
    "weight in float32": (
        lambda d: Pair(d, lambda self, x: F.linear(x, self.first.weight.float().to(x.dtype))),
        1e-6,
    ),
    "quantised": (lambda d: Pair(d, _quantised), 1e-6),
    "autocast inside": (lambda d: Narrow(d, autocast=True), 0.05),
}
