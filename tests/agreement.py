"""Models whose exact numbers must agree with the dense Jacobian, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope import NTK
from reference import dense

__all__ = ["agree", "each_alone", "random"]


def random(*shape: int) -> Tensor:
    """Normal numbers in float64, the same for each shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def agree(model: nn.Module, inputs: Any, general: set[str] = frozenset(), **options: Any) -> NTK:  # type: ignore[assignment]
    """Checks a model's exact numbers and the parameters that no rule takes."""
    ntk, expected = NTK(model, inputs, **options), dense(model, inputs)
    structure = ntk.engine.samples().jacobian
    assert set(structure.graph.general) == general
    rows = expected.jacobian[structure.axes.state_index()]
    torch.testing.assert_close(structure.frobenius_squared(), (rows**2).sum((1, 2)), rtol=1e-9, atol=0)
    kernel = expected.kernel
    torch.testing.assert_close(ntk.to_dense(), kernel, rtol=1e-9, atol=1e-10 * float(kernel.abs().max()))
    return ntk


def each_alone(build: Callable[[], nn.Module], inputs: Tensor) -> None:
    """All parameters together, and every one with the others frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    agree(model, inputs)
    parameters = list(model.parameters())
    for alone in parameters if len(parameters) > 1 else []:
        for parameter in parameters:
            parameter.requires_grad_(parameter is alone)
        agree(model, inputs)
