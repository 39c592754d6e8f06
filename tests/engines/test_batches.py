"""Batches are the same by their values, whatever they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ntkscope.engines.torch.batches import difference, digest

X = torch.arange(30, dtype=torch.float32).reshape(5, 6) / 7
CHANGED = X.clone()
CHANGED[1:4, 2] += 1
MASK = torch.ones(5, 6, dtype=torch.bool)
SPARSE = torch.eye(6).to_sparse()

SAME: dict[str, tuple[Any, Any]] = {
    "itself": (X, X),
    "copy": (X, (X.clone(),)),
    "other names": ({"a": X, "b": MASK}, {"y": MASK.clone(), "x": X}),
    "other dtype": (X, X.double()),
    "rounded": (X.double(), X.bfloat16()),
    "other shape": (X, X.reshape(5, 2, 3)),
    "one has a mask": (X, {"x": X, "mask": MASK}),
    "not a number": (torch.full((3,), torch.nan), torch.full((3,), torch.nan)),
    "sparse": ((X, SPARSE), (X, SPARSE.clone())),
    "no tensors": ((X, "mean"), (X, 3)),
}

DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "rows": (X, CHANGED, "input 0 differs in 3 of 5 rows"),
    "second": ((MASK, X), (MASK, CHANGED), "input 1 differs in 3 of 5 rows"),
    "vector": (X[0], CHANGED[1], "input 0 differs in 6 of 6 rows"),
    "scalar": (torch.tensor(1.0), torch.tensor(2.0), "input 0 differs in its value"),
    "other dtype": (X, CHANGED.double(), "input 0 differs in 3 of 5 rows"),
    "shared mask": ({"m": MASK, "x": X}, {"m": MASK, "x": CHANGED}, "input 1 differs in 3 of 5 rows"),
    "other size": (X, X[:, :4], "input 0 has other values, shapes (5, 6) and (5, 4)"),
    "sparse": ((X, SPARSE), (X, 2 * SPARSE), "input 2 differs in 6 of 6 rows"),
}


@pytest.mark.parametrize(("ours", "theirs"), SAME.values(), ids=SAME)
def test_the_same(ours: Any, theirs: Any) -> None:
    assert difference(ours, theirs) == difference(theirs, ours) == ""


@pytest.mark.parametrize(("ours", "theirs", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_different(ours: Any, theirs: Any, words: str) -> None:
    assert difference(ours, theirs) == words
    assert difference(theirs, ours) != ""


def test_digest_is_of_values() -> None:
    x, y = torch.randn(4, 3), torch.arange(5)
    one = digest((x, y))
    assert len(one) == 32
    for same in ({"b": y, "a": x}, [x.double(), y.int()], (x.reshape(2, 6), y), (x.clone(), y, "word")):
        assert digest(same) == one
    for other in ((x, y + 1), (x,), (x.flip(0), y), (-x, y)):
        assert digest(other) != one
    assert digest(torch.tensor([0.0])) == digest(torch.tensor([-0.0]))
    assert digest(torch.eye(3).to_sparse()) != digest(torch.eye(4).to_sparse())
    assert digest(torch.tensor([1 + 2j])) != digest(torch.tensor([1 - 2j]))
