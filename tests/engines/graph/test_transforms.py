"""Models that call torch.func inside are recorded as what the transformations compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from agreement import random
from ntkscope import NTK
from ntkscope.engines.base import Refusal
from reference import dense
from zoo import Function


def _network(model: nn.Module, point: Tensor) -> Tensor:
    return model.outer(torch.tanh(model.inner(point))).sum()


def _slopes(model: nn.Module, x: Tensor) -> Tensor:
    """A network that is fitted to an equation."""
    return torch.stack(
        [
            vmap(grad(lambda p: _network(model, p)))(x).sum(-1),
            vmap(model.outer)(x[:, :1].expand(-1, 5))[:, 0],
        ],
        -1,
    )


def _laplacian(model: nn.Module, x: Tensor) -> Tensor:
    curvature = vmap(hessian(lambda p: _network(model, p)))(x)
    return curvature.diagonal(dim1=-1, dim2=-2).sum(-1, keepdim=True)


def _jacobians(model: nn.Module, x: Tensor) -> Tensor:
    rows = vmap(jacrev(lambda p: _network(model, p)))(x)
    return torch.cat([rows, vmap(jacfwd(lambda p: _network(model, p)))(x)], -1)


def _pushed(model: nn.Module, x: Tensor) -> Tensor:
    parameters = dict(model.inner.named_parameters())
    value, tangent = jvp(lambda z: functional_call(model.inner, parameters, (z,)), (x,), (x.cos(),))
    return model.outer(torch.tanh(value)) * tangent.sum(-1, keepdim=True)


def _one_step_of_descent(model: nn.Module, x: Tensor) -> Tensor:
    def of_one(point: Tensor) -> Tensor:
        slope = grad(lambda w: torch.tanh(F.linear(point, w)).square().sum())(model.inner.weight)
        return F.linear(point, model.inner.weight - 0.1 * slope)

    return model.outer(vmap(of_one)(x))


def _mask_by_vmap(model: nn.Module, x: Tensor) -> Tensor:
    seen = x.sum(-1) > 0
    steps = torch.arange(x.shape[1])
    rows = vmap(vmap(lambda b, i, j: (j <= i) & (seen[b, j] | (i == j)), (None, None, 0)), (None, 0, None))
    mask = vmap(rows, (0, None, None))(torch.arange(len(x)), steps, steps)
    hidden = model.inner(x)
    return model.outer(F.scaled_dot_product_attention(hidden, hidden, hidden, attn_mask=mask))


MODELS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], tuple[int, ...]]] = {
    "slopes": (_slopes, (4, 2)),
    "laplacian": (_laplacian, (4, 2)),
    "jacobians": (_jacobians, (4, 2)),
    "pushed": (_pushed, (4, 2)),
    "one-step-of-descent": (_one_step_of_descent, (4, 2)),
    "mask-by-vmap": (_mask_by_vmap, (4, 3, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_and_the_trace_are_exact(name: str) -> None:
    forward, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Function(forward, inner=nn.Linear(2, 5), outer=nn.Linear(5, 1)).double()
    inputs: Any = random(*shape)
    ntk, expected = NTK(model, inputs), dense(model, inputs)
    found = ntk.engine.samples()
    assert not isinstance(found, Refusal), found
    assert ntk.trace("exact").value == pytest.approx(expected.trace, rel=1e-9)
    assert float(found.exact_squares(lambda done, of: None).sum()) == pytest.approx(expected.trace, rel=1e-9)
    assert ntk.frobenius_norm("exact").value == pytest.approx(expected.frobenius_norm, rel=1e-9)
