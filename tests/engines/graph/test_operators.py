"""The table of operators: consistent with itself, and true of the operators that it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from ntkscope.engines.torch.graph.operators import (
    OPERATORS,
    Trait,
    arguments_of,
    expands,
    is_move,
    is_pointwise,
    joins,
    name_of,
    on_meta,
    rearranges,
    splits,
    unbound_axis,
    view_of,
)
from ntkscope.engines.torch.graph.recorder import record


def _recorded(function: Callable[[Tensor], Tensor], x: Tensor) -> list[fx.Node]:
    """The operations of a function; ``meta["shape"]`` is the shape of each one's value."""
    graph = record(function, [x]).graph
    for node in graph.nodes:
        value = node.meta.get("val")
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
    return [node for node in graph.nodes if node.op == "call_function"]


# Consistent.


@pytest.mark.parametrize("name", OPERATORS)
def test_every_name_is_an_operator(name: str) -> None:
    assert isinstance(getattr(torch.ops.aten, name), torch._ops.OpOverloadPacket)


@pytest.mark.parametrize("traits", OPERATORS.values(), ids=OPERATORS)
def test_traits_fit_together(traits: Trait) -> None:
    if Trait.REARRANGES in traits:
        assert Trait.MOVES in traits
        assert traits & (Trait.RESHAPES | Trait.PERMUTES)
    kinds = Trait.RESHAPES | Trait.PERMUTES | Trait.SPLITS | Trait.TAKES | Trait.JOINS | Trait.EXPANDS
    assert len(traits & kinds) <= 1


# True of the operators: what each one does to distinct numbers.

CALLS: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda x: x.view(3, 4),
    "reshape": lambda x: x.reshape(3, 4),
    "_unsafe_view": lambda x: torch.ops.aten._unsafe_view(x, [3, 4]),
    "flatten": lambda x: x.flatten(),
    "unflatten": lambda x: x.unflatten(1, (3, 2)),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "contiguous": lambda x: torch.ops.aten.contiguous(x),
    "alias": lambda x: torch.ops.aten.alias(x),
    "clone": lambda x: x.clone(),
    "t": lambda x: x.t(),
    "mT": lambda x: x.mT,
    "numpy_T": lambda x: x.T,
    "transpose": lambda x: x.transpose(0, 1),
    "permute": lambda x: x.permute(1, 0),
    "movedim": lambda x: x.movedim(0, 1),
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "moveaxis": lambda x: x.moveaxis(0, 1),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split(4, -1)[1],
    "split_with_sizes": lambda x: torch.split_with_sizes(x, [1, 5], 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "tensor_split": lambda x: x.tensor_split(2, 1)[1],
    "unsafe_chunk": lambda x: torch.unsafe_chunk(x, 2, 1)[1],
    "unsafe_split": lambda x: torch.unsafe_split(x, 3, 1)[1],
    "select": lambda x: x.select(1, 2),
    "slice": lambda x: torch.ops.aten.slice(x, 1, 1, 6, 2),
    "narrow": lambda x: x.narrow(-1, 1, 3),
    "cat": lambda x: torch.cat([x, x]),
    "concat": lambda x: torch.concat([x, x], -1),
    "stack": lambda x: torch.stack([x, x], 1),
    "hstack": lambda x: torch.hstack([x, x]),
    "vstack": lambda x: torch.vstack([x, x]),
    "flip": lambda x: x.flip(1),
    "expand": lambda x: x.unsqueeze(0).expand(3, 2, 6),
    "expand_as": lambda x: x.expand_as(torch.ones(3, 2, 6)),
    "broadcast_to": lambda x: x.broadcast_to(3, 2, 6),
}
NUMBERS = torch.arange(12.0).reshape(2, 6)


def test_every_operator_is_called() -> None:
    assert set(CALLS) == set(OPERATORS)


@pytest.mark.parametrize(("name", "call"), CALLS.items(), ids=CALLS)
def test_an_operator_does_what_its_traits_say(name: str, call: Callable[[Tensor], Any]) -> None:
    node = next(node for node in _recorded(call, NUMBERS) if name_of(node) == name)
    traits = OPERATORS[name]
    assert is_move(node) == (Trait.MOVES in traits)
    assert rearranges(node) == (Trait.REARRANGES in traits)
    assert splits(node) == (Trait.SPLITS in traits)
    assert joins(node) == (Trait.JOINS in traits)
    assert expands(node) == (Trait.EXPANDS in traits)
    source, result = node.all_input_nodes[0].meta["val"], node.meta["val"]
    shown = torch.cat([part.flatten() for part in result]) if splits(node) else result.flatten()
    assert set(shown.tolist()) <= set(source.flatten().tolist())
    if traits & (Trait.RESHAPES | Trait.PERMUTES | Trait.SPLITS):
        torch.testing.assert_close(shown.sort().values, source.flatten().sort().values)
    if Trait.RESHAPES in traits:
        torch.testing.assert_close(shown, source.flatten())


VIEWS = Trait.RESHAPES | Trait.PERMUTES | Trait.SPLITS | Trait.TAKES


@pytest.mark.parametrize("name", [name for name, traits in OPERATORS.items() if traits & VIEWS])
def test_a_view_of_probes_and_samples_is_the_operator_on_each(name: str) -> None:
    nodes = _recorded(CALLS[name], NUMBERS)
    chain = nodes[next(i for i, node in enumerate(nodes) if name_of(node) == name) :]
    source = chain[0].all_input_nodes[0].meta["val"]
    block = torch.arange(6.0 * source.numel()).reshape(3, 2, *source.shape)
    found = block
    for node in chain:
        view = view_of(node)
        assert view is not None
        found = view(found)
    expected = [CALLS[name](one) for one in block.flatten(0, 1)]
    torch.testing.assert_close(found, torch.stack(expected).unflatten(0, (3, 2)))
    assert found.untyped_storage().data_ptr() == block.untyped_storage().data_ptr()


def test_what_is_no_view_has_none() -> None:
    for call in (CALLS["cat"], CALLS["flip"], torch.tanh):
        assert view_of(_recorded(call, NUMBERS)[-1]) is None


def test_dropout_is_a_view_in_evaluation_alone() -> None:
    for train in (False, True):
        (node,) = _recorded(lambda x, train=train: torch.dropout(x, 0.0, train), NUMBERS)
        assert (view_of(node) is not None) == (not train)


# Nodes.


def test_picking_from_what_is_split_is_a_move_and_from_anything_else_is_none() -> None:
    chunk, part = _recorded(lambda x: x.chunk(2)[0], NUMBERS)
    assert name_of(part) == "getitem"
    assert is_move(chunk)
    assert is_move(part)
    *_, largest = _recorded(lambda x: x.max(1)[0], NUMBERS)
    assert name_of(largest) == "getitem"
    assert not is_move(largest)


def test_arguments_have_their_defaults() -> None:
    (node,) = _recorded(lambda x: torch.ops.aten.slice(x, 1, end=3), NUMBERS)
    arguments = arguments_of(node)
    assert isinstance(arguments.pop("self"), fx.Node)
    assert arguments == {"dim": 1, "start": None, "end": 3, "step": 1}


def test_a_node_stands_for_its_shape() -> None:
    (node,) = _recorded(lambda x: x.half(), NUMBERS)
    outline = on_meta(node)
    assert (outline.shape, outline.dtype, outline.device.type) == ((2, 6), torch.float16, "meta")
    assert on_meta(3) == 3


def test_the_axis_of_an_unbind_counts_from_the_front() -> None:
    for axis in (1, -1):
        node = _recorded(lambda x, axis=axis: x.unbind(axis)[0], NUMBERS)[0]
        assert unbound_axis(node) == 1
    assert unbound_axis(_recorded(CALLS["chunk"], NUMBERS)[0]) is None


@pytest.mark.parametrize(
    ("call", "expected"),
    [(torch.tanh, True), (lambda x: x * 2 + 1, True), (CALLS["t"], False)],
    ids=["tanh", "scaled", "transposed"],
)
def test_pointwise_operations(call: Callable[[Tensor], Tensor], expected: bool) -> None:
    assert is_pointwise(_recorded(call, NUMBERS / 12)[-1]) == expected
