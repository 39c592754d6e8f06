"""Contractions, y = Σ W·a, whatever operation they are written as: axes have labels, as in einsum.

Of the parameter's axes some are in the output and in the other argument (groups), some in the
output alone (outputs O), some in the other argument alone (features I). The axes that the output
shares with the other argument alone are positions T. So G = Σ_t δ_t ⊗ a_t in every group.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.factors import Direct, Factor, Order, Outer
from ntkscope.engines.torch.gradients.sides import Features
from ntkscope.engines.torch.rules.base import GroupShape

__all__ = ["Contraction", "Label", "Labels", "broadcast_labels"]

#: Name of an axis.
Label: TypeAlias = "int | str"
Labels: TypeAlias = tuple[Label, ...]


def broadcast_labels(dims: int) -> Labels:
    """Labels of the last axes of a broadcast shape, the same for every argument."""
    return tuple(range(-dims, 0))


@dataclass(frozen=True)
class Contraction:
    """Labels of the axes of one sample's arguments and output. An axis of length 1 may stand for any length.

    Attributes:
        parameter: Of the parameter.
        shape: The parameter's.
        others: Of the other arguments; none where the parameter is only added.
        output: Of the output.
    """

    parameter: Labels
    shape: tuple[int, ...]
    others: tuple[Labels, ...]
    output: Labels

    @property
    def has_diagonals(self) -> bool:
        """Whether an argument has the same label twice."""
        return any(len(set(labels)) < len(labels) for labels in (self.parameter, *self.others))

    def group_shape(self, output: tuple[int, ...]) -> GroupShape:
        """Outputs, parameters and positions, for an output of this shape."""
        kept = set(self._own)
        outputs = math.prod(size for label, size in zip(self.output, output, strict=True) if label in kept)
        return GroupShape(outputs, math.prod(self.shape), math.prod(output) / max(outputs, 1))

    @property
    def _own(self) -> Labels:
        """The parameter's axes that are longer than 1."""
        return tuple(label for label, size in zip(self.parameter, self.shape, strict=True) if size != 1)

    def gradient(self, delta: Tensor, others: Sequence[Tensor]) -> Factor:
        """The parameter's gradient.

        Args:
            delta: δ, shape (k, B, *output).
            others: The other arguments, shape (B, *argument) each.
        """
        own = self._own
        sizes = dict(zip(own, (size for size in self.shape if size != 1), strict=True))
        delta_axes = dict(zip(self.output, delta.shape[2:], strict=True))
        if not others:
            return self._added(delta, own, sizes)
        labels, other = self._joined(others)
        sizes = delta_axes | sizes
        labels, other = _without_broadcast(labels, other, sizes)
        # What the parameter alone has meets ones; what the other argument alone has is summed before.
        alone = [label for label in own if label not in labels and label not in delta_axes]
        labels, other = _with_axes(labels, other, alone, sizes)
        labels, other = _summed(labels, other, {*own, *self.output}, 1)
        seen, delta = _summed(self.output, delta, {*own, *labels}, 2)
        parts = _Parts.of(own, labels, seen)
        if not parts.outputs and not parts.features:
            return _elementwise(own, seen, delta, labels, other)
        return parts.outer(own, sizes, seen, delta, labels, other)

    def _added(self, delta: Tensor, own: Labels, sizes: dict[Label, int]) -> Direct:
        labels, delta = _summed(self.output, delta, set(own), 2)
        labels, delta = _with_axes(labels, delta, [label for label in own if label not in labels], sizes, 2)
        return _direct(labels, delta, own)

    def _joined(self, others: Sequence[Tensor]) -> tuple[Labels, Tensor]:
        """The other arguments multiplied into one; what they alone share is summed over."""
        if len(others) == 1:
            return self.others[0], others[0]
        kept = {*self.parameter, *self.output}
        result = tuple(dict.fromkeys(label for labels in self.others for label in labels if label in kept))
        numbers = {label: n for n, label in enumerate(dict.fromkeys(sum(self.others, ())), start=1)}
        operands = [
            part
            for labels, other in zip(self.others, others, strict=True)
            for part in (other, [0, *(numbers[label] for label in labels)])
        ]
        return result, torch.einsum(*operands, [0, *(numbers[label] for label in result)])


@dataclass(frozen=True)
class _Parts:
    """The labels by what they are."""

    groups: Labels
    outputs: Labels
    features: Labels
    positions: Labels

    @classmethod
    def of(cls, own: Labels, other: Labels, output: Labels) -> _Parts:
        """From the labels of the parameter, the other argument and the output."""
        return cls(
            groups=tuple(label for label in own if label in output and label in other),
            outputs=tuple(label for label in own if label in output and label not in other),
            features=tuple(label for label in own if label not in output),
            positions=tuple(label for label in output if label not in own),
        )

    def outer(
        self, own: Labels, sizes: dict[Label, int], seen: Labels, delta: Tensor, labels: Labels, other: Tensor
    ) -> Outer:
        """Σ_t δ_t ⊗ a_t, arranged."""

        def size(of: Labels) -> int:
            return math.prod(sizes[label] for label in of)

        sides = (self.groups, self.positions, self.outputs), (self.groups, self.positions, self.features)
        delta = _arranged(seen, delta, functools.reduce(operator.add, sides[0]), 2)
        other = _arranged(labels, other, functools.reduce(operator.add, sides[1]), 1)
        probe_side = delta.reshape(*delta.shape[:2], *(size(side) for side in sides[0]))
        features = Features(other.reshape(other.shape[0], *(size(side) for side in sides[1])))
        formed = (*self.groups, *self.outputs, *self.features)
        if formed == own:
            return Outer(probe_side, features)
        if (*self.groups, *self.features, *self.outputs) == own:
            return Outer(probe_side, features, transposed=True)
        order = Order(tuple(sizes[label] for label in formed), tuple(formed.index(label) for label in own))
        return Outer(probe_side, features, order=order)


def _elementwise(own: Labels, seen: Labels, delta: Tensor, labels: Labels, other: Tensor) -> Direct:
    """Σ_t δ_t a_t, entry by entry."""
    aligned = _arranged(labels, other, tuple(label for label in seen if label in labels), 1)
    shape = [size if label in labels else 1 for label, size in zip(seen, delta.shape[2:], strict=True)]
    product = delta * aligned.reshape(aligned.shape[0], *shape)
    kept, product = _summed(seen, product, set(own), 2)
    return _direct(kept, product, own)


def _direct(labels: Labels, formed: Tensor, own: Labels) -> Direct:
    """The parameter's own axes, in their order, as one."""
    return Direct(_arranged(labels, formed, own, 2).reshape(*formed.shape[:2], -1))


# Tensors with labelled axes after some that have no label: (k, B, ...) or (B, ...).


def _summed(labels: Labels, x: Tensor, kept: set[Label], leading: int) -> tuple[Labels, Tensor]:
    """Summed over the axes that are not kept."""
    others = [axis + leading for axis, label in enumerate(labels) if label not in kept]
    return tuple(label for label in labels if label in kept), x.sum(others) if others else x


def _arranged(labels: Labels, x: Tensor, wanted: Labels, leading: int) -> Tensor:
    """The axes in the order that is wanted."""
    if labels == wanted:
        return x
    return x.permute(*range(leading), *(labels.index(label) + leading for label in wanted))


def _with_axes(
    labels: Labels, x: Tensor, more: Sequence[Label], sizes: dict[Label, int], leading: int = 1
) -> tuple[Labels, Tensor]:
    """Repeated along further axes, in front."""
    if not more:
        return labels, x
    shape = [sizes[label] for label in more]
    x = x.reshape(*x.shape[:leading], *[1] * len(shape), *x.shape[leading:])
    x = x.expand(*x.shape[:leading], *shape, *x.shape[leading + len(shape) :])
    return (*more, *labels), x


def _without_broadcast(labels: Labels, x: Tensor, sizes: dict[Label, int]) -> tuple[Labels, Tensor]:
    """Without the axes of length 1 that stand for longer ones."""
    axes = [n for n, label in enumerate(labels) if x.shape[n + 1] == 1 and sizes.get(label, 1) != 1]
    if not axes:
        return labels, x
    return tuple(label for n, label in enumerate(labels) if n not in axes), x.squeeze([n + 1 for n in axes])
