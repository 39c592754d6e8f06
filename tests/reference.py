"""Dense float64 references by plain torch: no code of ntkscope is used here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Dense", "alignment", "dense"]


@dataclass(frozen=True)
class Dense:
    """J and what follows from it."""

    jacobian: Tensor

    @property
    def kernel(self) -> Tensor:
        return self.jacobian @ self.jacobian.T

    @property
    def trace(self) -> float:
        return float((self.jacobian**2).sum())

    @property
    def frobenius_norm(self) -> float:
        return float((self.kernel**2).sum().sqrt())

    @property
    def effective_rank(self) -> float:
        return self.trace**2 / self.frobenius_norm**2


def alignment(a: Dense, b: Dense) -> float:
    """cos(K₁, K₂)."""
    return float((a.kernel * b.kernel).sum()) / (a.frobenius_norm * b.frobenius_norm)


def dense(
    model: nn.Module,
    inputs: Any,
    outputs: Callable[[Any], Tensor] | None = None,
    chunk_size: int | None = None,
) -> Dense:
    """J = ∂state/∂θ by ``torch.func.jacrev``: shape (n, p), trainable parameters in their order."""
    named = dict(model.named_parameters())
    parameters = {name: p.detach() for name, p in named.items() if p.requires_grad}
    buffers = {name: b.detach() for name, b in model.named_buffers()}
    frozen = {name: p.detach() for name, p in named.items() if not p.requires_grad}

    def state(values: Mapping[str, Tensor]) -> Tensor:
        # Clones: models write into their inputs, and batch norm into its running averages.
        args, kwargs = _arguments(_cloned(inputs))
        result = functional_call(model, {**frozen, **_cloned(buffers), **values}, args, kwargs)
        return (result if outputs is None else outputs(result)).reshape(-1)

    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            blocks = jacrev(state, chunk_size=chunk_size)(parameters)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return Dense(torch.cat([block.reshape(len(block), -1) for block in blocks.values()], dim=1))


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _cloned(item) for name, item in value.items()}
    return tuple(_cloned(item) for item in value) if isinstance(value, (tuple, list)) else value


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})
