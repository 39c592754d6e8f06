"""What a state is made of besides numbers that change: what tells whether a structure may be taken over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import pytree

__all__ = ["Constants", "have_one_form", "is_equal", "layout_of", "outlines"]


@dataclass(frozen=True, eq=False)
class Constants:
    """What a state is made of besides the values of its parameters and inputs.

    Attributes:
        parameters: Name, shape, dtype and device of each.
        output_shape: Shape of the state.
        fixed: Frozen parameters and buffers, by name.
        inputs: The form of the inputs, and shape, dtype and device of each tensor in it.
    """

    parameters: list[Any]
    output_shape: tuple[int, ...]
    fixed: dict[str, Tensor]
    inputs: list[Any]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Constants)
            and (self.parameters, self.output_shape) == (other.parameters, other.output_shape)
            and _equal(self.fixed, other.fixed)
            and _same(self.inputs, other.inputs)
        )

    @property
    def nbytes(self) -> int:
        """What keeping them takes, were they all dense."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.fixed.values())

    @property
    def comparable(self) -> bool:
        """Whether they can be compared: sparse tensors cannot."""
        return all(tensor.layout is torch.strided for tensor in self.fixed.values())


def have_one_form(first: Any, second: Any) -> bool:
    """Whether two batches of inputs differ in the numbers of their tensors alone."""
    return _same(layout_of(first), layout_of(second))


def layout_of(inputs: Any) -> list[Any]:
    """The form of inputs, with shape, dtype and device of each tensor, and what is none as it is."""
    leaves, spec = pytree.tree_flatten(inputs)
    return [str(spec), *((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves)]


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers; of layouts that torch does not compare no two are."""
    if (one.layout, one.shape, one.dtype, one.device) != (
        other.layout,
        other.shape,
        other.dtype,
        other.device,
    ):
        return False
    if one.layout is torch.sparse_coo:
        ours, theirs = one.coalesce(), other.coalesce()
        return torch.equal(ours.indices(), theirs.indices()) and torch.equal(ours.values(), theirs.values())
    return one.layout is torch.strided and torch.equal(one, other)


def outlines(tensors: Mapping[str, Tensor]) -> list[Any]:
    """Name, shape, dtype and device of each."""
    return [(name, value.shape, value.dtype, value.device) for name, value in tensors.items()]


def _same(first: list[Any], second: list[Any]) -> bool:
    # What is no tensor may compare in ways of its own (an array): only a plain True counts.
    return len(first) == len(second) and all(
        one is two or (type(one) is type(two) and (one == two) is True)
        for one, two in zip(first, second, strict=True)
    )


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return outlines(first) == outlines(second) and all(
        is_equal(value, second[name]) for name, value in first.items()
    )
