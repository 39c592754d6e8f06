"""Operations that write in place are recorded as what they compute, whatever their overloads are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.inplace import functional_overload, writes_all_of_it
from ntkscope.engines.torch.graph.recorder import record

aten = torch.ops.aten


def _all_overloads() -> Iterator[Any]:
    for full in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if namespace == "aten":
            yield getattr(getattr(aten, name), overload or "default")


def _types(overload: Any) -> list[str]:
    return [str(argument.type) for argument in overload._schema.arguments]


def test_over_all_of_aten_the_arguments_are_the_same() -> None:
    pairs = [(one, functional_overload(one)) for one in _all_overloads() if one._schema.is_mutable]
    found = [(one, other) for one, other in pairs if other is not None]
    assert len(found) > 150
    for one, other in found:
        written = one._schema.name.split("::")[1]
        computed = other._schema.name.split("::")[1]
        assert written in (f"{computed}_", f"__i{computed[2:]}")
        assert _types(one) == _types(other)
        assert not other._schema.is_mutable


@pytest.mark.parametrize(
    ("written", "computed"),
    [
        (aten.pow_.Scalar, aten.pow.Tensor_Scalar),
        (aten.pow_.Tensor, aten.pow.Tensor_Tensor),
        (aten.float_power_.Scalar, aten.float_power.Tensor_Scalar),
        (aten.ldexp_.default, aten.ldexp.Tensor),
        (aten.floor_divide_.Tensor, aten.floor_divide.default),
        (aten.__ior__.Tensor, aten.__or__.Tensor),
        (aten.add_.Tensor, aten.add.Tensor),
        (aten.fill_diagonal_.default, None),
        (aten.add.out, None),
    ],
)
def test_overloads_are_told_apart_by_their_arguments(written: Any, computed: Any) -> None:
    assert functional_overload(written) is computed


def _float_power(x: Tensor) -> Tensor:
    return x.abs().float_power_(1.5)


def _power_of_a_tensor(x: Tensor) -> Tensor:
    return x.abs().pow_(x.detach())


def _compared(x: Tensor) -> Tensor:
    # In the dtype of what is written, not a truth value.
    return x.clone().gt_(0.1)


def _copied_from_a_row(x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(x[0])


def _copied_in_another_dtype(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32).copy_(x).double() * x


def _rounded_down(x: Tensor) -> Tensor:
    return (7 * x).floor_divide_(torch.tensor(0.5, dtype=x.dtype)) * x


def _doubled(x: Tensor) -> Tensor:
    return x.clone().ldexp_(torch.ones((), dtype=torch.int32))


def _masked(x: Tensor) -> Tensor:
    mask = x > 0
    mask |= x < -1
    return x.clone().masked_fill_(mask, 2.0)


def _filled_diagonally(x: Tensor) -> Tensor:
    return x.clone().index_put_((torch.arange(2), torch.arange(2)), x.sum())


WRITES = [
    _float_power, _power_of_a_tensor, _compared, _copied_from_a_row, _copied_in_another_dtype,
    _rounded_down, _doubled, _masked, _filled_diagonally,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_the_graph_computes_what_was_written(write: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    recorded, other = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    recording = record(write, [recorded])
    module = torch.fx.GraphModule(recording.constants, recording.graph)
    torch.testing.assert_close(module(other), write(other))


def test_an_operation_without_another_form_is_named() -> None:
    with pytest.raises(StructureError, match=r"writes in place by aten\.fill_diagonal_"):
        record(lambda x: x.clone().fill_diagonal_(0.0), [torch.ones(2, 2)])


def test_results_are_compared_with_what_is_written() -> None:
    written = torch.tensor([1.0, torch.nan])
    assert writes_all_of_it(written, torch.tensor([1.0, torch.nan], dtype=torch.float64))
    assert not writes_all_of_it(written, torch.tensor([2.0, torch.nan]))
    assert not writes_all_of_it(written, torch.ones(1))
    assert not writes_all_of_it(written, None)
