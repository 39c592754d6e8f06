"""Class 1 in few digits: a path besides the module's own is seen in half precision as in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch.witness import differing

HALVES = [torch.bfloat16, torch.float16]


class _Held(nn.Module):
    """A weight that a list holds besides its module."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.scale = scale

    def hold(self) -> _Held:
        object.__setattr__(self, "_held", [self.a.weight])
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.scale * x @ self._held[0].T + self.a.bias))  # type: ignore[index,operator]


class _Closed(nn.Module):
    """A bias in a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        bias = nn.Parameter(torch.ones(3))
        self.bias = bias
        self.add: Callable[[Tensor], Tensor] = lambda y: y + bias

    def forward(self, x: Tensor) -> Tensor:
        return self.add(torch.tanh(self.a(x)))


class _Cached(nn.Module):
    """A product of weights that was cached before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def fill(self) -> _Cached:
        self.product = [self.b.weight @ self.a.weight]
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.product[0].T


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", ["list", "small part of the gradient", "closure", "cache"])
def test_a_path_besides_the_modules_is_refused(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    models: dict[str, Callable[[], nn.Module]] = {
        "list": lambda: _Held(1.0).to(dtype).hold(),
        "small part of the gradient": lambda: _Held(0.3).to(dtype).hold(),
        "closure": lambda: _Closed().to(dtype),
        "cache": lambda: _Cached().to(dtype).fill(),
    }
    with pytest.raises(ValueError, match="is reached by a path besides its module's"):
        NTK(models[kind](), torch.randn(5, 4).to(dtype))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_what_differs_by_a_tenth_of_the_largest_gradient_is_seen(dtype: torch.dtype) -> None:
    large, small = torch.full((4,), 1.0).to(dtype), torch.full((4,), 0.1).to(dtype)
    expected: dict[str, Tensor | None] = {"large": large, "small": small}
    assert differing(expected, dict(expected), dtype) == ""
    assert differing(expected, {"large": large, "small": None}, dtype) == "small"
    assert differing(expected, {"large": large, "small": 2 * small}, dtype) == "small"
