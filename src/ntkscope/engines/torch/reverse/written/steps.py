"""What operations do with gradients: the steps of a written-out reverse pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.graph.operators import name_of
from ntkscope.engines.torch.reverse.written.pointwise import FusedPointwise, Slope
from ntkscope.engines.torch.reverse.written.store import GradientStore
from ntkscope.engines.torch.reverse.written.transposes import sum_to

__all__ = [
    "ConcatAdjoint",
    "FunctionAdjoint",
    "MatmulAdjoint",
    "OperationAdjoint",
    "PointwiseAdjoint",
    "ReverseStep",
    "ViewAdjoint",
]

#: One operation's part of the reverse pass.
ReverseStep = Callable[[GradientStore], None]


class OperationAdjoint(Protocol):
    """What an operation does with gradients."""

    @property
    def needs(self) -> Iterable[fx.Node]:
        """Values that it needs."""
        ...

    def bind(
        self, node: fx.Node, values: Mapping[fx.Node, Tensor], slopes: Mapping[fx.Node, tuple[Slope, ...]]
    ) -> ReverseStep | None:
        """The step that reads the gradient of ``node``, at these values.

        Returns:
            ``None`` where there is nothing to do, but for a gradient that was kept apart.
        """
        ...


@dataclass(frozen=True)
class ViewAdjoint:
    """A view of its first argument, whose gradient is a view of that one's."""

    needs: tuple[fx.Node, ...] = ()

    def bind(self, node: fx.Node, values: Any, slopes: Any) -> None:
        """As :meth:`OperationAdjoint.bind`."""


@dataclass(frozen=True)
class ConcatAdjoint:
    """A ``cat`` or ``stack``: its parts' gradients are cut from its own."""

    parts: list[tuple[fx.Node, Callable[[Tensor], Tensor]]]
    needs: tuple[fx.Node, ...] = ()

    def bind(self, node: fx.Node, values: Any, slopes: Any) -> ReverseStep:
        """As :meth:`OperationAdjoint.bind`."""

        def pull(store: GradientStore) -> None:
            gradient = store.of(node)
            for part, cut in self.parts:
                store.give(part, cut(gradient))

        return pull


@dataclass(frozen=True)
class FunctionAdjoint:
    """An operation that adds or moves numbers."""

    source: fx.Node
    adjoint: Callable[[Tensor], Tensor]
    needs: tuple[fx.Node, ...] = ()

    def bind(self, node: fx.Node, values: Any, slopes: Any) -> ReverseStep:
        """As :meth:`OperationAdjoint.bind`."""
        return lambda store: store.of(self.source).add_(self.adjoint(store.of(node)))


@dataclass(frozen=True)
class MatmulAdjoint:
    """y = x Wᵀ, or y = x W where the weight is turned: the gradient of x is δ W, or δ Wᵀ."""

    source: fx.Node
    weight: fx.Node
    turned: bool

    @property
    def needs(self) -> tuple[fx.Node, ...]:
        """As :meth:`OperationAdjoint.needs`."""
        return (self.weight,)

    def bind(self, node: fx.Node, values: Mapping[fx.Node, Tensor], slopes: Any) -> ReverseStep:
        """As :meth:`OperationAdjoint.bind`."""
        # The same for all samples.
        weight = values[self.weight][0]
        weight = weight.mT if self.turned else weight
        rows, columns = weight.shape

        def pull(store: GradientStore) -> None:
            gradient = store.of(node).reshape(-1, rows)
            total, fresh = store.slot(self.source)
            try:
                flat = total.view(-1, columns)
            except RuntimeError:
                product = (gradient @ weight).view(total.shape)
                total.copy_(product) if fresh else total.add_(product)
            else:
                torch.addmm(flat, gradient, weight, beta=0 if fresh else 1, out=flat)

        return pull


@dataclass(frozen=True)
class PointwiseAdjoint:
    """A fused operation: the gradient of an input is the output's times the slope."""

    fused: FusedPointwise
    live: set[fx.Node]

    @property
    def needs(self) -> tuple[fx.Node, ...]:
        """As :meth:`OperationAdjoint.needs`."""
        return self.fused.inputs

    def bind(self, node: fx.Node, values: Any, slopes: Mapping[fx.Node, tuple[Slope, ...]]) -> ReverseStep:
        """As :meth:`OperationAdjoint.bind`."""
        shape = tuple(node.meta["shape"])
        known = {
            x: slope
            for x, slope in zip(self.fused.inputs, slopes[node], strict=True)
            if slope is not None and not (isinstance(slope, float) and slope == 0) and x in self.live
        }
        pulls = []
        splits: dict[Any, None] = {x.args[0]: None for x in known if name_of(x) == "getitem"}
        for split in splits:
            parts = {x: slope for x, slope in known.items() if x in split.users}
            whole = _of_equal_parts(split, parts, shape)
            if whole is not None:
                pulls.append(whole)
                known = {x: slope for x, slope in known.items() if x not in parts}
        pulls += [_of_slope(x, slope, shape) for x, slope in known.items()]

        def pull(store: GradientStore) -> None:
            gradient = store.of(node)
            for each in pulls:
                each(store, gradient)

        return pull


def _of_slope(x: fx.Node, slope: Any, shape: tuple[int, ...]) -> Callable[[GradientStore, Tensor], None]:
    """Adds δ times the slope to the gradient of x."""
    own = x.meta["shape"]
    if math.prod(own) != math.prod(shape):
        return lambda store, gradient: store.of(x).add_(sum_to(gradient * slope, own))
    # As many numbers: at most, axes of length 1 were put in front.
    if isinstance(slope, float):
        return lambda store, gradient: store.of(x).add_(_in_shape(gradient, own), alpha=slope)
    slope = slope.reshape(-1, *own)

    def pull(store: GradientStore, gradient: Tensor) -> None:
        _add_product(*store.slot(x), _in_shape(gradient, own), slope)

    return pull


def _add_product(total: Tensor, fresh: bool, gradient: Tensor, slope: Tensor) -> None:
    if fresh:
        torch.mul(gradient, slope, out=total)
    else:
        total.addcmul_(gradient, slope)


def _in_shape(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    return gradient if gradient.dim() == len(shape) + 2 else gradient.reshape(*gradient.shape[:2], *shape)


def _of_equal_parts(split: fx.Node, slopes: dict[fx.Node, Any], shape: tuple[int, ...]) -> Any:
    """Equal parts of one value that all enter one fused operation (gates, say), pulled back to it at once.

    A function of the store and the operation's gradient; ``None`` where there are no such parts.
    """
    parts: list[Any] = sorted(slopes, key=lambda part: part.args[1])
    source: Any = split.args[0]
    full, own = source.meta["shape"], parts[0].meta["shape"]
    axes = [axis for axis, size in enumerate(own) if len(full) == len(own) and full[axis] != size]
    if (
        len(axes) != 1
        or full[axes[0]] != len(parts) * own[axes[0]]
        or [part.args[1] for part in parts] != list(range(len(parts)))
        or any(part.meta["shape"] != own for part in parts)
        or math.prod(own) != math.prod(shape)
        or not all(isinstance(slope, Tensor) for slope in slopes.values())
    ):
        return None
    axis = axes[0]
    split_up = (*full[:axis], len(parts), *own[axis:])
    stacked = torch.stack([slopes[part].reshape(-1, *own) for part in parts], dim=axis + 1)

    def pull(store: GradientStore, gradient: Tensor) -> None:
        total, fresh = store.slot(source)
        gradient = _in_shape(gradient, own).unsqueeze(axis + 2)
        _add_product(total.view(*total.shape[:2], *split_up), fresh, gradient, stacked)

    return pull
