"""Rules of parameters that are repeated or put beside other values, against the dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from agreement import each_alone, random
from zoo import Function

Run = Callable[[Any, Tensor], Tensor]

#: The function, the shape of the input, the shape of the parameter.
MOVES: dict[str, tuple[Run, tuple[int, ...], tuple[int, ...]]] = {
    "class-token": (
        lambda m, x: torch.cat([m.w.expand(len(x), -1, -1), x], 1).cumsum(1).tanh(),
        (3, 2, 4),
        (1, 1, 4),
    ),
    "expanded": (lambda m, x: x * m.w.expand(2, 4), (3, 2, 4), (4,)),
    "expanded-in-the-middle": (lambda m, x: x * m.w.expand(2, 3, 4), (3, 2, 3, 4), (2, 1, 4)),
    "expanded-as": (lambda m, x: x * m.w.expand_as(x), (3, 2, 4), (2, 1)),
    "broadcast": (lambda m, x: x * torch.broadcast_to(m.w, x.shape), (3, 2, 4), (1, 2, 1)),
    "repeated": (lambda m, x: x * m.w.repeat(len(x), 3, 2), (3, 6, 4), (2, 2)),
    "repeated-along-new-axes": (lambda m, x: x * m.w.repeat(len(x), 3, 1), (3, 3, 4), (4,)),
    "tiled": (lambda m, x: x * m.w.tile(3, 1), (3, 6, 4), (2, 4)),
    "tiled-less-axes": (lambda m, x: x * m.w.tile(2), (3, 2, 4), (2, 2)),
    "interleaved": (lambda m, x: x * m.w.repeat_interleave(3, dim=-2), (3, 6, 4), (2, 4)),
    "cat-in-the-middle": (
        lambda m, x: torch.stack([torch.cat([y, m.w, y[:1]]).cumsum(0) for y in x]),
        (3, 2, 4),
        (3, 4),
    ),
    "cat-last-axis": (lambda m, x: torch.stack([torch.cat([y, m.w], -1) for y in x]), (3, 2, 4), (2, 3)),
    "cat-twice": (
        lambda m, x: torch.stack([torch.cat([y, m.w]).tanh() + torch.cat([m.w, y]) for y in x]),
        (3, 2, 4),
        (1, 4),
    ),
    "cat-with-itself": (
        lambda m, x: torch.stack([torch.cat([m.w, y, m.w]).cumsum(0) for y in x]),
        (3, 2, 4),
        (1, 4),
    ),
    "stack": (lambda m, x: torch.stack([torch.stack([y, m.w], 1).cumsum(1) for y in x]), (3, 4), (4,)),
    "cast-twice": (
        lambda m, x: x.float() * m.w.float() + (m.w.to(torch.float64) * x).float() + m.w.float(),
        (3, 4),
        (4,),
    ),
}


@pytest.mark.parametrize("name", [name for name in MOVES if "cast" not in name])
def test_moves(name: str) -> None:
    run, shape, own = MOVES[name]
    each_alone(lambda: Function(run, w=torch.randn(own)), random(*shape))
