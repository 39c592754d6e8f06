"""What was proven of a module is not proven again, until something about it is another."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.engines.torch import proofs
from ntkscope.engines.torch.outlines import outline_of
from ntkscope.engines.torch.state import StateFunction
from reference import dense


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each comparison with exchanged parameters."""
    calls: list[int] = []
    own = StateFunction._compare_with_exchanged

    def counted(self: StateFunction, z: Tensor) -> None:
        calls.append(1)
        own(self, z)

    monkeypatch.setattr(StateFunction, "_compare_with_exchanged", counted)
    return calls


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.GRUCell(5, 4), nn.Linear(4, 2)).double().eval()


def _x(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_second_kernel_is_not_compared_anew_and_is_right(compared: list[int]) -> None:
    model, x = _net(), _x()
    for _ in range(3):
        ntk = NTK(model, x.clone())
        assert ntk.trace("exact").value == pytest.approx(dense(model, x).trace, rel=1e-12)
        with torch.no_grad():
            model[0].weight.add_(0.3)
    assert len(compared) == 1


def _change_inputs(model: nn.Sequential, x: Tensor) -> Tensor:
    return _x(1)


def _change_one_number(model: nn.Sequential, x: Tensor) -> Tensor:
    x[2, 1] += 1e-14
    return x


def _change_mode(model: nn.Sequential, x: Tensor) -> Tensor:
    model.train()
    return x


def _change_part(model: nn.Sequential, x: Tensor) -> Tensor:
    model[1] = nn.Tanh()
    return x


def _change_hook(model: nn.Sequential, x: Tensor) -> Tensor:
    model[1].register_forward_hook(lambda module, args, out: 3 * out)
    return x


def _change_trained(model: nn.Sequential, x: Tensor) -> Tensor:
    model[0].bias.requires_grad_(False)
    return x


def _change_attribute(model: nn.Sequential, x: Tensor) -> Tensor:
    model.note = {"deep": [1, {"er": 2.5}]}  # type: ignore[assignment]
    return x


def _change_dtype(model: nn.Sequential, x: Tensor) -> Tensor:
    model.float()
    return x.float()


def _change_frozen(model: nn.Sequential, x: Tensor) -> Tensor:
    model[0].bias.requires_grad_(False)
    NTK(model, x)
    with torch.no_grad():
        model[0].bias[1] += 1e-12
    return x


def _change_buffer(model: nn.Sequential, x: Tensor) -> Tensor:
    model.register_buffer("chance", torch.zeros(()))
    NTK(model, x)
    model.chance.fill_(0.5)  # type: ignore[operator, union-attr]
    return x


@pytest.mark.parametrize("change", [_change_frozen, _change_buffer])
def test_what_is_held_besides_parameters_is_compared(
    change: Callable[[nn.Sequential, Tensor], Tensor], compared: list[int]
) -> None:
    model, x = _net(), _x()
    x = change(model, x)
    NTK(model, x)
    assert len(compared) == 2
    NTK(model, x)
    assert len(compared) == 2


@pytest.mark.parametrize(
    "change",
    [
        _change_inputs, _change_one_number, _change_mode, _change_part,
        _change_hook, _change_trained, _change_attribute, _change_dtype,
    ],
)  # fmt: skip
def test_what_is_another_is_compared(
    change: Callable[[nn.Sequential, Tensor], Tensor], compared: list[int]
) -> None:
    model, x = _net(), _x()
    NTK(model, x)
    x = change(model, x)
    NTK(model, x)
    assert len(compared) == 2
    NTK(model, x)
    assert len(compared) == 2


def test_layers_and_outputs_are_told_apart(compared: list[int]) -> None:
    model, x = _net(), _x()

    def half(y: Tensor) -> Tensor:
        return y[:, :1]

    for options in ({}, {"layer": "1"}, {"outputs": half}, {"outputs": lambda y: y[:, :1]}):
        NTK(model, x, **options)
    assert len(compared) == 4
    NTK(model, x, outputs=half)
    NTK(model, x, layer="1")
    assert len(compared) == 4


def test_a_function_that_may_hold_the_module_is_not_kept(compared: list[int]) -> None:
    model, x = _net(), _x()
    head = model[3]

    def own(y: Tensor) -> Tensor:
        return head(y[:, :1].expand(-1, 4))

    for _ in range(2):
        NTK(model, x, outputs=own)
    assert len(compared) == 2


def test_randomness_that_comes_later_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5)).double().eval(), _x()
    NTK(model, x)
    model.train()
    with pytest.raises(ValueError, match="it is random"):
        NTK(model, x)


def test_a_module_that_fails_is_not_taken_for_proven() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5)).double().train(), _x()
    for _ in range(2):
        with pytest.raises(ValueError, match="it is random"):
            NTK(model, x)


def test_the_module_goes_with_its_last_user() -> None:
    model: nn.Module | None = _net()
    NTK(model, _x()).trace()
    assert model in proofs._PROVEN
    gone = weakref.ref(model)
    model = None
    gc.collect()
    assert gone() is None


def test_a_module_that_holds_itself_goes_too() -> None:
    model: Any = _net()
    # Through a method and a reference.
    model.call = model.forward
    model.own = {"me": [weakref.ref(model)]}
    NTK(model, _x())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_large_inputs_are_not_kept(compared: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "_MOST_BYTES", 10)
    model, x = _net(), _x()
    for _ in range(2):
        NTK(model, x)
    assert len(compared) == 2


@pytest.mark.parametrize("place", ["buffer", "input"])
def test_sparse_tensors_are_not_compared(place: str, compared: list[int]) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2).double()
            if place == "buffer":
                self.register_buffer("adjacency", torch.eye(4, dtype=torch.float64).to_sparse())

        def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
            return torch.sparse.mm(self.adjacency if adjacency is None else adjacency, self.layer(x))

    model, x = Graph(), _x()
    dense_one = torch.eye(4, dtype=torch.float64)
    for _ in range(2):
        ntk = NTK(model, x if place == "buffer" else (x, dense_one.to_sparse()), batch_dim=None)
        assert ntk.trace("exact").value > 0
    assert len(compared) == 2
    if place == "input":
        NTK(model, (x, dense_one), batch_dim=None)
        NTK(model, (x, dense_one.to_sparse()), batch_dim=None)
        assert len(compared) == 4


def test_few_proofs_of_a_module_are_kept() -> None:
    model = _net()
    for seed in range(7):
        NTK(model, _x(seed))
    assert len(proofs._PROVEN[model]) == proofs._MOST


# Outlines.


class _Thing:
    pass


def test_an_outline_without_owning_ends_with_its_objects() -> None:
    thing = _Thing()
    attributes = [{"thing": thing, "none": None, "name": "x", "list": [thing, 1.5], "_buffers": {"a": 1}}]
    whole = outline_of(attributes)
    weak = whole.without_owning()
    assert weak == whole
    assert whole == weak
    attributes[0]["_buffers"] = {}
    assert outline_of(attributes) == whole
    assert outline_of([{**attributes[0], "thing": None}]) != weak
    assert outline_of([{**attributes[0], "thing": _Thing()}]) != weak
    assert outline_of([{**attributes[0], "name": "y"}]) != whole
    assert outline_of([{**attributes[0], "list": [thing, 1]}]) != whole
    del attributes, thing, whole
    gc.collect()
    # Nothing that is there now is what has gone, and neither is None.
    gone = [{"thing": None, "none": None, "name": "x", "list": [None, 1.5], "_buffers": {}}]
    assert outline_of(gone) != weak
    assert weak != weak.without_owning()  # type: ignore[union-attr]


def test_what_can_only_be_kept_alive_has_no_such_outline() -> None:
    class Slotted:
        __slots__ = ("module",)

    assert outline_of([{"slotted": Slotted()}]).without_owning() is None
    assert outline_of([{"dtype": torch.float32, "size": torch.Size([2])}]).without_owning() is not None


def test_true_is_not_one() -> None:
    assert outline_of([{"flag": True}]) != outline_of([{"flag": 1}])
    assert outline_of([{"flag": {"a": True}}]) != outline_of([{"flag": {"a": 1}}])


class _Mixing(nn.Module):
    """Mixes features by a matrix that is no parameter, sparse or not."""

    def __init__(self, mixing: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("mixing", mixing)

    def forward(self, x: Tensor) -> Tensor:
        return (self.mixing @ self.layer(x).T).T  # type: ignore[operator]


@pytest.mark.parametrize("order", [(False, True), (True, False), (True, True)])
def test_sparse_buffers_are_proven_each_time(order: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    mixing, x = torch.diag(torch.tensor([1.0, 2.0, 3.0])), _x().float()
    model = _Mixing(mixing)
    for sparse in order:
        model.mixing = mixing.to_sparse() if sparse else mixing
        assert NTK(model, x).trace("exact").value == pytest.approx(14 * float((x**2).sum() + len(x)))
