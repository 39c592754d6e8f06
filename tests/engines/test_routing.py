"""Rows selected by boolean masks: every sample on its own, exactly; else by the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inside import refusal, structure
from ntkscope import NTK
from zoo import Function


def _by_mask(m: Any, x: Tensor) -> Tensor:
    share, chosen = m.router(x).softmax(-1).max(-1)
    out = torch.zeros_like(x)
    for number, expert in enumerate(m.experts):
        mask = chosen == number
        out[mask] = share[mask][:, None] * expert(x[mask])
    return out


def _added_where_any(m: Any, x: Tensor) -> Tensor:
    """Two experts a token, skipped where there is none."""
    share, chosen = m.router(x).softmax(-1).topk(2, dim=-1)
    out = x.clone()
    for number, expert in enumerate(m.experts):
        for place in range(2):
            mask = chosen[..., place] == number
            if mask.any() and mask.sum() != 0:
                out[mask] += share[..., place][mask].unsqueeze(-1) * expert(x[mask])
    return out


def _by_index_add(m: Any, x: Tensor) -> Tensor:
    """As mixtures in transformers were written."""
    rows = x.reshape(-1, x.shape[-1])
    share, chosen = m.router(rows).softmax(-1).topk(2, dim=-1)
    mask = torch.nn.functional.one_hot(chosen, len(m.experts)).permute(2, 1, 0)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(m.experts):
        place, token = torch.where(mask[number])
        own = expert(rows[None, token].reshape(-1, rows.shape[1])) * share[token, place, None]
        out.index_add_(0, token, own.to(rows.dtype))
    return out.reshape(x.shape)


def _by_places(m: Any, x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    chosen = m.router(rows).argmax(-1)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(m.experts):
        places = (chosen == number).nonzero().squeeze(-1)
        out[places] = expert(rows[places])
    return out.reshape(x.shape)


def _columns(m: Any, x: Tensor) -> Tensor:
    """A mask beside other indices, and a number that is written."""
    chosen = m.router(x).argmax(-1)
    out = m.experts[0](x)
    out[chosen == 1] = 0.5
    out[chosen == 0] = m.experts[1](x)[chosen == 0, 1:].sum(-1, keepdim=True)
    return out


ROUTERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "mask": _by_mask,
    "added": _added_where_any,
    "index_add": _by_index_add,
    "nonzero": _by_places,
    "columns": _columns,
}


def _model(run: Callable[[Any, Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
    model = Function(run, router=nn.Linear(3, 4), experts=experts).double()
    return model, torch.randn(6, 5, 3, dtype=torch.float64)


def _kernel(model: nn.Module, x: Tensor) -> Tensor:
    parameters = list(model.parameters())
    rows = [
        torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        for one in model(x).flatten()
    ]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    return jacobian @ jacobian.T


@pytest.mark.parametrize("name", ROUTERS)
def test_every_row_is_that_of_autograd(name: str) -> None:
    model, x = _model(ROUTERS[name])
    ntk, kernel = NTK(model, x), _kernel(model, x)
    assert refusal(ntk) == ""
    assert structure(ntk).axes.routed
    assert structure(ntk).graph.general == ()
    torch.testing.assert_close(ntk.to_dense(), kernel, rtol=1e-10, atol=1e-12)
    assert ntk.frobenius_norm("exact").value == pytest.approx(float(kernel.norm()), rel=1e-10)


def test_what_does_not_treat_row_by_row_is_refused() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        mask = m.router(x).argmax(-1) == 1
        out = m.experts[0](x)
        out[mask] = x[mask] - m.experts[1](x[mask]).sum(0)
        return out

    model, x = _model(run)
    ntk = NTK(model, x)
    assert refusal(ntk)
    torch.testing.assert_close(ntk.to_dense(), _kernel(model, x), rtol=1e-10, atol=1e-12)


def test_the_same_mask_for_all_samples_is_taken_as_it_is() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        mask = torch.tensor([True, False, True, True, False])
        return m.experts[0](x[:, mask])

    model, x = _model(run)
    ntk = NTK(model, x)
    assert refusal(ntk) == ""
    assert not structure(ntk).axes.routed
    torch.testing.assert_close(ntk.to_dense(), _kernel(model, x), rtol=1e-10, atol=1e-12)


def test_a_later_moment_has_its_own_routes() -> None:
    model, x = _model(_by_mask)
    ntk = NTK(model, x)
    ntk.trace("exact")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    later = ntk.at(model)
    assert refusal(later) == ""
    torch.testing.assert_close(later.to_dense(), _kernel(model, x), rtol=1e-10, atol=1e-12)
