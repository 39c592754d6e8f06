"""Under autocast an operation is recorded with the casts that were made, and gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inside import refusal, structure
from ntkscope import NTK
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.autocast import casts_of
from ntkscope.engines.torch.graph.recorder import record
from truth.reference import dense

aten = torch.ops.aten
HALVES = [torch.bfloat16, torch.float16]


def _run(x: Tensor) -> Tensor:
    y = F.linear(x, x)
    y = F.layer_norm(torch.tanh(y), (3,)) + x
    return (y.softmax(-1) @ x).float()


@pytest.mark.parametrize("dtype", HALVES)
def test_the_graph_needs_no_autocast(dtype: torch.dtype) -> None:
    def lowered(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return _run(x)

    first, second = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    recording = record(lowered, [first])
    module = torch.fx.GraphModule(recording.constants, recording.graph)
    assert torch.equal(module(second), lowered(second))
    assert not torch.equal(module(second), _run(second))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_casts_are_found_by_their_results(dtype: torch.dtype) -> None:
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    half = x.to(dtype)
    assert casts_of(aten.linear.default, (x, x), {}, F.linear(half, half), dtype) == dtype
    assert casts_of(aten.tanh.default, (x,), {}, x.tanh(), dtype) is None
    assert casts_of(aten.softmax.int, (half, 1), {}, half.float().softmax(1), dtype) == torch.float32
    with pytest.raises(StructureError, match="under autocast"):
        casts_of(aten.tanh.default, (x,), {}, x.sin(), dtype)


class Lowered(nn.Module):
    """A model that switches autocast on by itself."""

    def __init__(self, dtype: torch.dtype, body: nn.Module) -> None:
        super().__init__()
        self.body, self.dtype = body, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            out: Tensor = self.body(x)
        return out.float()


BODIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3)), (9, 8)),
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.Flatten(),
            nn.Linear(16, 3),
        ).eval(),
        (9, 2, 6, 6),
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), nn.Flatten()
        ),
        (9, 2, 8),
    ),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", BODIES)
def test_models_keep_their_structure_and_their_layers(name: str, dtype: torch.dtype) -> None:
    make, shape = BODIES[name]
    torch.manual_seed(0)
    model, x = Lowered(dtype, make()), torch.randn(shape)
    ntk = NTK(model, x)
    assert refusal(ntk) == ""
    assert structure(ntk).graph.general == ()
    expected = dense(model, lambda: model(x))
    assert ntk.trace(method="exact").value == pytest.approx(expected.trace, rel=0.02)
    assert ntk.frobenius_norm(method="exact").value == pytest.approx(expected.frobenius_norm, rel=0.02)
