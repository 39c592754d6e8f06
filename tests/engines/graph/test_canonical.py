"""Products with a weight become linear maps with a bias, whatever they are written as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agreement import agree, random
from inside import structure
from zoo import Function

Run = Callable[[Any, Tensor], Tensor]

#: The function, the shape of the input, the shapes of the weight and of the bias.
LINEAR: dict[str, tuple[Run, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "matmul": (lambda m, x: x @ m.w + m.b, (3, 2, 4), (4, 5), (5,)),
    "matmul-left": (lambda m, x: (m.w @ x.T).T + m.b, (3, 4), (5, 4), (5,)),
    "bias-first": (lambda m, x: m.b + x @ m.w, (3, 4), (4, 5), (5,)),
    "linear": (lambda m, x: F.linear(x, m.w) + m.b, (3, 4), (5, 4), (5,)),
    "addmm": (lambda m, x: torch.addmm(m.b, x, m.w), (3, 4), (4, 5), (5,)),
    "bmm": (lambda m, x: torch.bmm(x[None], m.w[None])[0] + m.b, (3, 4), (4, 5), (5,)),
    "baddbmm": (lambda m, x: torch.baddbmm(m.b[None, None], x[None], m.w[None])[0], (3, 4), (4, 5), (5,)),
    "einsum": (lambda m, x: torch.einsum("bti,io->bto", x, m.w) + m.b, (3, 2, 4), (4, 5), (5,)),
    "einsum-two-features": (
        lambda m, x: torch.einsum("bthi,hio->bto", x, m.w) + m.b,
        (3, 2, 2, 4),
        (2, 4, 5),
        (5,),
    ),
    "tensordot": (lambda m, x: torch.tensordot(x, m.w, ([2], [1])) + m.b, (3, 2, 4), (5, 4), (5,)),
    "conv1d-of-gpt2": (
        lambda m, x: torch.addmm(m.b, x.view(-1, 4), m.w).view(*x.shape[:-1], 5),
        (3, 2, 4),
        (4, 5),
        (5,),
    ),
}


def _model(run: Run, weight: tuple[int, ...], bias: tuple[int, ...]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Function(run, w=torch.randn(weight), b=torch.randn(bias)).double()


@pytest.mark.parametrize(("run", "shape", "weight", "bias"), LINEAR.values(), ids=LINEAR)
def test_a_weight_and_its_bias_are_one_use(
    run: Run, shape: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...]
) -> None:
    ntk = agree(_model(lambda m, x: torch.tanh(run(m, x)), weight, bias), random(*shape))
    (use,) = structure(ntk).graph.uses
    assert set(use.parameters) == {"weight", "bias"}
    (group,) = structure(ntk).groups
    assert len(group.blocks) == 2


#: What stays: the function, the shapes of the weight and of the bias, and the operations that use them.
OTHERS: dict[str, tuple[Run, tuple[int, ...], tuple[int, ...], int]] = {
    "experts": (lambda m, x: (torch.einsum("bti,eio->beto", x, m.w) + m.b).flatten(1), (2, 4, 5), (5,), 2),
    "groups": (lambda m, x: torch.einsum("bti,tio->bto", x, m.w) + m.b, (2, 4, 5), (5,), 2),
    "scaled": (lambda m, x: torch.addmm(m.b, x[:, 0], m.w, alpha=2), (4, 5), (5,), 1),
    "bias-by-position": (lambda m, x: x @ m.w + m.b, (4, 5), (2, 1), 2),
    "product-read-elsewhere": (lambda m, x: (y := x @ m.w) * torch.tanh(y + m.b), (4, 5), (5,), 2),
    "used-in-two-ways": (lambda m, x: F.linear(torch.tanh(x @ m.w), m.w) + m.b, (4, 4), (4,), 2),
    "weight-of-a-sum": (lambda m, x: x @ (m.w + 1) + m.b, (4, 5), (5,), 2),
}


@pytest.mark.parametrize(("run", "weight", "bias", "uses"), OTHERS.values(), ids=OTHERS)
def test_other_uses_are_right(run: Run, weight: tuple[int, ...], bias: tuple[int, ...], uses: int) -> None:
    ntk = agree(_model(run, weight, bias), random(3, 2, 4))
    assert len(structure(ntk).graph.uses) == uses


def test_steps_of_a_recurrence_share_their_weight() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        state = x[:, 0]
        for step in x.unbind(1):
            state = torch.tanh(state @ m.w + m.b + step)
        return state

    ntk = agree(_model(run, (4, 4), (4,)), random(3, 5, 4))
    (group,) = structure(ntk).groups
    assert group.stackable
    assert len(group.uses) == 5
