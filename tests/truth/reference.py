"""J by plain autograd, a row at a time, on the user's own module. No code of ntkscope is used here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Dense", "alignment", "dense", "dense_jacobian"]


def dense_jacobian(model: nn.Module, call: Callable[[], Tensor]) -> Tensor:
    """∂state/∂θ in float64, shape (n, p): one backward pass for every entry of the state.

    Args:
        model: Whose trainable parameters are θ, in their order; a complex one is two real ones.
        call: Runs the module as its user does, and returns the state.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        state = call().reshape(-1)
        rows = [_row(value, parameters) for value in state]
    return torch.stack(rows)


def _row(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    if not value.requires_grad:
        return torch.cat([_flat(torch.zeros_like(p)) for p in parameters])
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([_flat(torch.zeros_like(p) if grad is None else grad) for grad, p in pairs])


def _flat(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    gradient = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    return gradient.reshape(-1).double()


@dataclass(frozen=True, eq=False)
class Dense:
    """J and the numbers that follow from it."""

    jacobian: Tensor

    @property
    def kernel(self) -> Tensor:
        return self.jacobian @ self.jacobian.T

    @property
    def trace(self) -> float:
        return float((self.jacobian**2).sum())

    @property
    def frobenius_norm(self) -> float:
        return float(self.kernel.norm())

    @property
    def effective_rank(self) -> float:
        norm = self.frobenius_norm
        return self.trace**2 / norm**2 if norm else math.nan

    def metrics(self) -> Iterator[tuple[str, float]]:
        """The metrics of one kernel by their names in NTK."""
        for name in ("trace", "frobenius_norm", "effective_rank"):
            yield name, getattr(self, name)


def dense(model: nn.Module, call: Callable[[], Tensor]) -> Dense:
    """The numbers of :func:`dense_jacobian`."""
    return Dense(dense_jacobian(model, call))


def alignment(first: Dense, second: Dense) -> float:
    """cos(K₁, K₂) = tr(K₁K₂) / (‖K₁‖ ‖K₂‖)."""
    product = float((first.kernel * second.kernel).sum())
    norms = first.frobenius_norm * second.frobenius_norm
    return product / norms if norms else math.nan
