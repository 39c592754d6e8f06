"""Numbers say no more than is known: digits, comparisons and causes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK, Estimate, measure_all
from truth.verdict import is_refusal


def _mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def _digits(estimate: Estimate) -> int:
    """How many digits are printed of the value."""
    number = re.match(r"[\d.,]+", estimate.value_text())
    assert number is not None
    return len(re.sub(r"[.,]", "", number.group()).lstrip("0"))


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 4), (torch.float16, 5)])
@pytest.mark.parametrize("metric", ["trace", "frobenius_norm", "effective_rank"])
def test_digits_of_half_precision(dtype: torch.dtype, most: int, metric: str) -> None:
    torch.manual_seed(1)
    estimate = getattr(NTK(_mlp().to(dtype), torch.randn(16, 6).to(dtype)), metric)(method="exact")
    assert estimate.stderr != 0 or _digits(estimate) <= most, repr(estimate)


@pytest.mark.parametrize("verb", ["alignment", "measure", "measure_all"])
def test_kernels_of_different_inputs(verb: str) -> None:
    torch.manual_seed(1)
    first, second = NTK(_mlp(), torch.randn(5, 6)), NTK(_mlp(1), torch.randn(5, 6))
    verbs = {
        "alignment": lambda: first.alignment(second),
        "measure": lambda: first.measure([second]),
        "measure_all": lambda: measure_all([first, second]),
    }
    with pytest.raises(ValueError, match="inputs") as caught:
        verbs[verb]()
    assert is_refusal(caught.value)


class WideHead(nn.Module):
    """A float32 backbone under a float64 head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 40), nn.Linear(40, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)).double())


class AutocastRegion(nn.Module):
    """bfloat16 in one layer of a float32 model."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 40), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = torch.tanh(self.body(x))
        return self.head(hidden.float())


class HalfBackbone(nn.Module):
    """A backbone in bfloat16 whose features a float32 head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 40).bfloat16(), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x.bfloat16())).float())


@pytest.mark.parametrize("kind", [WideHead, AutocastRegion, HalfBackbone])
def test_rounding_is_no_coupling(kind: type[nn.Module]) -> None:
    """Samples are on their own, whatever a lower precision inside rounds."""
    torch.manual_seed(0)
    model, x = kind(), torch.randn(64, 6)
    ntk = NTK(model, x)
    assert ntk.trace(method="exact").cost.vjps == 3, str(ntk.plan())
