"""Losses as functions of the state: their gradients, and the square roots of their Hessians."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["LOSSES", "REDUCTIONS", "Weigh", "gradient_of_loss", "square_root_of"]

#: Takes the state h to Rᵀh, where RRᵀ = ∂²L/∂h² and R does not move with h.
Weigh: TypeAlias = Callable[[Tensor], Tensor]

REDUCTIONS = ("mean", "sum")

# A Hessian that couples samples is kept whole up to this size.
_LARGEST = 4096


def gradient_of_loss(loss: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """∂L/∂h at a state, shape (n,).

    Args:
        loss: Takes the state to a tensor of one number.
        state: h.

    Raises:
        TypeError: If the loss is no tensor of one number.
        ValueError: If it does not depend on the state, or its gradient is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = state.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_value(loss, leaf), leaf)
    if not bool(gradient.isfinite().all()):
        raise ValueError("the gradient of the loss is not finite; look for logarithms and roots at 0")
    return gradient.reshape(-1)


def _value(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> Tensor:
    value = loss(leaf)
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"a loss takes the state to a tensor of one number, found {found}; add .sum() or .mean()"
        )
    if not value.requires_grad:
        raise ValueError("the loss does not depend on the state; compute it from its argument")
    return value.reshape(())


def square_root_of(loss: Any, state: Tensor, reduction: str, class_dim: int | None = None) -> Weigh:
    """R of a loss, so that JᵀRRᵀJ is its generalised Gauss-Newton matrix and RᵀJJᵀR has its spectrum.

    Args:
        loss: One of :data:`LOSSES`, or a convex function of the whole state that takes it to one number.
        state: h, at which the Hessian is taken.
        reduction: ``"mean"`` or ``"sum"``, as torch's losses have it; nothing for a function.
        class_dim: The state's axis of classes, for cross entropy.

    Raises:
        TypeError: If it is neither.
        ValueError: For an unknown name, and a Hessian that is not positive semidefinite, or zero.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; choose 'mean' or 'sum'")
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}; choose one of {', '.join(map(repr, LOSSES))}")
        if class_dim is not None and loss != "cross_entropy":
            raise ValueError(f"class_dim= is for loss='cross_entropy', found loss={loss!r}; leave it out")
        axis = _class_axis(tuple(state.shape), class_dim) if loss == "cross_entropy" else 0
        return LOSSES[loss](state, reduction == "mean", axis)
    if not callable(loss):
        raise TypeError(
            f"loss must be a name or a function of the state, found {type(loss).__name__}; "
            "pass loss='cross_entropy'"
        )
    return _of_function(loss, state)


def _class_axis(shape: tuple[int, ...], class_dim: int | None) -> int:
    """The axis of classes: 1, as ``torch.nn.functional.cross_entropy`` has it, or the only one."""
    if class_dim is not None:
        if not -len(shape) <= class_dim < len(shape):
            raise ValueError(
                f"the state {shape} has no axis {class_dim}; class_dim= names that of the classes"
            )
        return class_dim % len(shape)
    if len(shape) == 3:
        raise ValueError(
            f"the classes of a state of shape {shape} are along axis 1 in torch's losses, and along the last "
            "one in language models; say which by class_dim=1 or class_dim=-1"
        )
    return min(1, len(shape) - 1)


def _cross_entropy(state: Tensor, is_mean: bool, axis: int) -> Weigh:
    """Per sample diag(p) - ppᵀ = RRᵀ with R = diag(√p) - p√pᵀ, since √pᵀ√p = 1."""
    factor = math.sqrt(state.shape[axis] / state.numel()) if is_mean else 1.0

    def weigh(h: Tensor) -> Tensor:
        # Detached: R is that of the parameters at hand, and does not move with them.
        p = torch.softmax(h.detach(), axis)
        return factor * p.sqrt() * (h - (p * h).sum(axis, keepdim=True))

    return weigh


def _mse(state: Tensor, is_mean: bool, _: int) -> Weigh:
    """2 of every output, over all outputs."""
    factor = math.sqrt(2 / state.numel() if is_mean else 2)
    return lambda h: factor * h


def _binary_cross_entropy(state: Tensor, is_mean: bool, _: int) -> Weigh:
    """σ(1 - σ) of every logit, over all of them."""
    factor = math.sqrt(1 / state.numel()) if is_mean else 1.0

    def weigh(h: Tensor) -> Tensor:
        fixed = h.detach()
        return factor * (torch.sigmoid(fixed) * torch.sigmoid(-fixed)).sqrt() * h

    return weigh


#: By name, what makes R of the whole batch's state, whether losses are averaged, and the axis of classes.
LOSSES: dict[str, Callable[[Tensor, bool, int], Weigh]] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "binary_cross_entropy": _binary_cross_entropy,
}


def _of_function(loss: Callable[[Tensor], Tensor], state: Tensor) -> Weigh:
    """The symmetric root of the Hessian: sample by sample if it does not couple them, else whole."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = state.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_value(loss, leaf), leaf, create_graph=True)

        def product(v: Tensor) -> Tensor:
            if not gradient.requires_grad:
                return torch.zeros_like(leaf)
            found = torch.autograd.grad(gradient, leaf, v, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(leaf) if found is None else found

        blocks = _blocks(product, leaf.detach())
    root = _symmetric_root(blocks)
    shape = state.shape

    def weigh(h: Tensor) -> Tensor:
        parts = h.reshape(len(root), -1, 1)
        return (root @ parts).reshape(shape)

    return weigh


def _blocks(product: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """The Hessian's diagonal blocks of the samples along axis 0, or all of it as one: shape (B, s, s)."""
    batch = len(state) if state.dim() else 1
    blocks = _columns(product, state, batch)
    probe = torch.randn(state.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = probe.to(state.device, state.dtype)
    expected = product(probe).reshape(batch, -1)
    found = (blocks @ probe.reshape(batch, -1, 1)).reshape(batch, -1)
    scale = float(blocks.abs().max()) * math.sqrt(state.numel())
    if float((found - expected).abs().max()) <= 100 * torch.finfo(state.dtype).eps * scale:
        return blocks
    if state.numel() > _LARGEST:
        raise ValueError(
            f"the Hessian of the loss couples samples, and with n={state.numel():,} it is too large to be "
            f"kept whole ({_LARGEST:,} at most); use a sum over samples along axis 0 of the state"
        )
    return _columns(product, state, 1)


def _columns(product: Callable[[Tensor], Tensor], state: Tensor, batch: int) -> Tensor:
    """Products with every unit vector of a sample, for all samples at once: shape (B, s, s)."""
    size = state.numel() // batch
    columns = []
    for place in range(size):
        unit = torch.zeros(batch, size, dtype=state.dtype, device=state.device)
        unit[:, place] = 1
        columns.append(product(unit.reshape(state.shape)).reshape(batch, size))
    return torch.stack(columns, dim=2)


def _symmetric_root(blocks: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(((blocks + blocks.mT) / 2).double())
    largest = float(values.abs().max())
    if not math.isfinite(largest):
        raise ValueError("the Hessian of the loss is not finite; look for logarithms and roots at 0")
    if largest == 0:
        raise ValueError("the loss has no curvature at the state, so its Gauss-Newton matrix is zero")
    if float(values.min()) < -(torch.finfo(blocks.dtype).eps ** 0.5) * largest:
        raise ValueError(
            f"the Hessian of the loss has the eigenvalue {float(values.min()):.2g}, so it has no square "
            "root; use a loss that is convex in the state"
        )
    roots = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return (roots @ vectors.mT).to(blocks.dtype)
