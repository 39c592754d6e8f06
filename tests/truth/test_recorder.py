"""What a recording cannot hold costs the structure, never the number; what it can hold keeps it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.profiler import record_function

from ntkscope import NTK
from truth.reference import dense
from truth.verdict import assert_right, check_model


class Layers(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(4, 5), nn.Linear(5, 2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def _profiled(h: Tensor) -> Tensor:
    with record_function("activation"):
        return torch.tanh(h)


def _seeded_mask(h: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return h * torch.bernoulli(torch.full(h.shape[-1:], 0.5, dtype=h.dtype), generator=generator)


def _float_power(h: Tensor) -> Tensor:
    h = h * h + 0.5
    h.float_power_(1.5)
    return h


def _inverse_degree(h: Tensor) -> Tensor:
    degree = h.abs().sum(-1, keepdim=True)
    degree.pow_(-0.5)
    return h * degree


def _copied(h: Tensor) -> Tensor:
    out = torch.empty_like(h)
    out.copy_(torch.tanh(h))
    return out


def _written_columns(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, 1:] = torch.tanh(h[:, :-1])
    out[:, 0] += h[:, -1]
    return out


def _few_rows(h: Tensor) -> Tensor:
    assert h.shape[0] == 6, "this model was exported for batches of six"
    return torch.tanh(h)


def _dropped_mask(h: Tensor) -> Tensor:
    mask = h.detach()[..., 0] > 0
    return torch.tanh(h) if bool(mask.all()) else torch.tanh(h) * mask[..., None].to(h.dtype)


RECORDED = [_profiled, _float_power, _inverse_degree]
REFUSED = [_seeded_mask, _copied, _written_columns, _few_rows, _dropped_mask]


def _made(between: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Layers(between).double(), torch.randn(6, 4, dtype=torch.double)


@pytest.mark.parametrize("between", RECORDED + REFUSED)
def test_numbers(between: Callable[[Tensor], Tensor]) -> None:
    model, x = _made(between)
    check_model(model, x, lambda: model(x))


@pytest.mark.parametrize("between", RECORDED)
def test_structure_is_kept(between: Callable[[Tensor], Tensor]) -> None:
    model, x = _made(between)
    assert "2 one-hot probes a sample; about" in str(NTK(model, x).plan())


def _first_sample(x: Tensor, model: nn.Module, *, masked: bool) -> Tensor:
    """The batch with a masked or an unmasked sample in front."""
    hidden = model.first(x)[:, 0] > 0  # type: ignore[operator]
    index = torch.nonzero(hidden != masked).flatten()[0]
    order = torch.cat([index[None], torch.arange(len(x))[torch.arange(len(x)) != index]])
    return x[order]


@pytest.mark.parametrize("masked", [False, True])
def test_a_mask_that_one_sample_drops(masked: bool) -> None:
    """Structure is lost or not; batch norm is not what is named as its cause."""
    model, x = _made(_dropped_mask)
    x = _first_sample(x, model, masked=masked)
    ntk = NTK(model, x)
    assert_right(ntk.trace(method="exact"), dense(model, lambda: model(x)).trace)
    assert "batch norm" not in str(ntk.plan())


def test_a_graph_module() -> None:
    """A module that another tracer has made."""
    torch.manual_seed(0)
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double())
    x = torch.randn(6, 4, dtype=torch.double)
    check_model(model, x, lambda: model(x))


class HeldGenerator(nn.Module):
    """A generator that the module holds and winds back itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.generator = nn.Linear(4, 2), torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        self.generator.manual_seed(3)
        noise = torch.randn(x.shape[-1], generator=self.generator, dtype=x.dtype)
        return torch.tanh(self.layer(x + noise))


def test_a_generator_that_the_module_holds() -> None:
    torch.manual_seed(0)
    model, x = HeldGenerator().double(), torch.randn(6, 4, dtype=torch.double)
    check_model(model, x, lambda: model(x), refusable=True)
