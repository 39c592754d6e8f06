"""Blocks of products: all rows together, or one after the other where an operation asks for that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch import forward
from zoo import BY_NAME


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _no_batches(monkeypatch: pytest.MonkeyPatch, error: type[Exception] = RuntimeError) -> list[str]:
    """Makes whatever runs rows together fail, with no word of why; returns the tries."""
    tries: list[str] = []
    grad = torch.autograd.grad

    def fails(*args: Any, **kwargs: Any) -> Any:
        tries.append("vmap")
        raise error("no rule")

    def without_batches(*args: Any, **kwargs: Any) -> Any:
        return fails() if kwargs.get("is_grads_batched") else grad(*args, **kwargs)

    monkeypatch.setattr(forward, "vmap", fails)
    monkeypatch.setattr(torch.autograd, "grad", without_batches)
    return tries


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
@pytest.mark.parametrize("product", ["vjp", "jvp"])
def test_rows_go_one_at_a_time_where_they_do_not_go_together(
    product: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = BY_NAME["mlp"]
    ntk, dense = case.ntk(), case.dense().jacobian
    dense = dense if product == "jvp" else dense.T
    block = _random(dense.shape[1], 5)
    tries = _no_batches(monkeypatch, error)
    for _ in range(2):
        torch.testing.assert_close(getattr(ntk, product)(block), dense @ block)
    # It is remembered.
    assert len(tries) == 1


def test_an_error_of_single_rows_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    ntk = BY_NAME["mlp"].ntk()
    ntk.engine.jacobian.check_forward()
    _no_batches(monkeypatch)

    def fails(*args: Any) -> Any:
        raise RuntimeError("of one row")

    monkeypatch.setattr(forward.ForwardMode, "_one", fails)
    with pytest.raises(RuntimeError, match="of one row"):
        ntk.jvp(_random(ntk.n_params, 5))
    assert ntk.engine.jacobian._forward._vectorized  # type: ignore[union-attr]
