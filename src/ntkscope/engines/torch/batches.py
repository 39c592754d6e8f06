"""Whether two models were given the same batch."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import pytree

__all__ = ["difference", "digest"]


def difference(ours: Any, theirs: Any) -> str:
    """How one batch differs from another, in words; empty where all that can be compared is equal.

    Values are compared, wherever they stand and whatever they are called: two models may name their
    inputs differently, or take the same data in other shapes or another precision. What one batch
    has beyond the other (a mask) makes no difference.

    Args:
        ours: Tensors in tuples, lists and dicts.
        theirs: The same.
    """
    left = [(number, tensor) for number, tensor in enumerate(_tensors(ours))]
    right = _tensors(theirs)
    unmatched = []
    for number, tensor in left:
        twin = next((index for index, other in enumerate(right) if _equal(tensor, other)), None)
        if twin is None:
            unmatched.append((number, tensor))
        else:
            del right[twin]
    if not unmatched or not right:
        return ""
    for number, tensor in unmatched:
        twins = [other for other in right if other.shape == tensor.shape]
        if twins:
            return f"input {number} differs in {_differing_rows(tensor, twins[0])}"
    number, tensor = unmatched[0]
    shapes = " and ".join(str(tuple(x.shape)) for x in (tensor, right[0]))
    return f"input {number} has other values, shapes {shapes}"


def digest(inputs: Any) -> str:
    """A hash of a batch's values, wherever they stand and whatever they are called.

    Fractions count to float32: a batch and its float64 copy are the same.

    Args:
        inputs: Tensors in tuples, lists and dicts.
    """
    parts = sorted(_digest(tensor) for tensor in _tensors(inputs))
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _digest(tensor: Tensor) -> bytes:
    values = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    # A zero has one sign.
    plain = values.float() + 0.0 if values.is_floating_point() else values.long()
    numbers = plain.detach().to("cpu").contiguous().numpy()
    return hashlib.blake2b(numbers.reshape(-1).view("u1").data, digest_size=16).digest()


def _tensors(inputs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            found.append(leaf)
        elif isinstance(leaf, Tensor):
            sparse = (leaf if leaf.layout == torch.sparse_coo else leaf.to_sparse_coo()).coalesce()
            found += [sparse.indices(), sparse.values()]
    return found


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether the numbers are the same, in the coarser of both dtypes."""
    if first.numel() != second.numel():
        return False
    one, two = _alike(first.reshape(-1), second.reshape(-1))
    return torch.equal(one, two) or bool(_same(one, two).all())


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    second = second.to(first.device)
    if first.dtype == second.dtype:
        return first, second
    if first.is_floating_point() and second.is_floating_point():
        coarser = max(first.dtype, second.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    else:
        coarser = torch.promote_types(first.dtype, second.dtype)
    return first.to(coarser), second.to(coarser)


def _same(first: Tensor, second: Tensor) -> Tensor:
    """Entry by entry; nan is nan."""
    return (first == second) | ((first != first) & (second != second))


def _differing_rows(first: Tensor, second: Tensor) -> str:
    one, two = _alike(first, second)
    differing = ~_same(one, two)
    if differing.dim() == 0:
        return "its value"
    rows = differing.flatten(1).any(1) if differing.dim() > 1 else differing
    return f"{int(rows.sum()):,} of {len(rows):,} rows"
