"""Every block of the fuzzer in float32 and bfloat16: the number of the user's own module, or a refusal."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from fuzz.models import AUTOGRAD, COUPLED, FLOW, HABITS, LAYERS, WEIGHTS, Model, Spec
from ntkscope import NTK
from truth.reference import dense
from truth.verdict import is_refusal

BLOCKS = (*LAYERS, *HABITS, *WEIGHTS, *FLOW, *AUTOGRAD, *COUPLED)
#: Rounding of row-by-row autograd itself: some operations one after the other.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.08}


def _made(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    model = Model(Spec(3, "values", ((name, 21),), "mean", 5, 3))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.complex64 if parameter.is_complex() else dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(dtype) if buffer.is_floating_point() else buffer.data
    return model, torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(5)).to(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_in_low_precision(name: str, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = _made(name, dtype)
        try:
            right = dense(model, lambda: model(x))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            pytest.skip(f"torch has no such operation: {error}")
        model, x = _made(name, dtype)
        try:
            ntk = NTK(model, x)
            found = [getattr(ntk, metric)(method="exact") for metric, _ in right.metrics()]
            found += [getattr(ntk, metric)() for metric, _ in right.metrics()]
        except Exception as error:
            if not is_refusal(error):
                raise
            return
    for estimate, (_, number) in zip(found, [*right.metrics()] * 2, strict=True):
        slack = ROUNDING[dtype] * number + 6 * (estimate.stderr or 0)
        assert abs(estimate.value - number) <= slack, (estimate, number)
