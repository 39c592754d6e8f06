"""Arguments of operators are walked as torch's own trees are."""

from __future__ import annotations

import collections

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.graph.arguments import leaves_of, map_tensors

_Pair = collections.namedtuple("_Pair", "a b")
_ARGUMENTS = (
    torch.ones(2),
    [torch.zeros(1), 3, (None, "mean")],
    {"dim": [1, 2], "other": torch.ones(3), "dtype": torch.float32},
    _Pair(torch.ones(1), 2.5),
    fx.immutable_collections.immutable_list([torch.ones(4), True]),
)


def test_every_tensor_is_changed_and_all_else_is_kept() -> None:
    def shape(value: Tensor) -> tuple[int, ...]:
        return ("shape", *value.shape)

    assert map_tensors(shape, _ARGUMENTS) == pytree.tree_map_only(Tensor, shape, _ARGUMENTS)


def test_the_leaves_are_those_of_the_tree() -> None:
    expected = pytree.tree_leaves(_ARGUMENTS)
    found = leaves_of(_ARGUMENTS)
    assert [id(leaf) for leaf in found] == [id(leaf) for leaf in expected]
