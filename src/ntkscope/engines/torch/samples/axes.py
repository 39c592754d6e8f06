"""Where the samples lie in a model's inputs and in its state."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.errors import StructureError, no_structure
from ntkscope.engines.torch.packed import PackedAlone, PackedSeen
from ntkscope.engines.torch.routing import RoutedAlone, RoutingSeen
from ntkscope.engines.torch.samples.squeezes import Squeezes
from ntkscope.engines.torch.state import StateFunction
from ntkscope.errors import argument

__all__ = ["BatchDim", "SampleAxes", "input_axes"]

#: An axis for every input, or a tuple or dict of axes (``None``: shared by all samples).
BatchDim: TypeAlias = "int | tuple[int | None, ...] | Mapping[str, int | None]"


@dataclass(frozen=True)
class SampleAxes:
    """The sample axis of every input and of the state.

    Attributes:
        inputs: Axis of the samples in each leaf of the inputs, ``None`` where shared.
        batch: B, the number of samples.
        state_axis: Axis of the state that holds the samples, one after the other.
        state_shape: Shape of one sample's state.
        squeezes: What each ``squeeze()`` without an axis drops of a batch.
        routed: Whether all rows are taken where a mask selects some.
        packed: To how many steps packed sequences of a batch are padded each time; ``None`` without any.
    """

    inputs: tuple[int | None, ...]
    batch: int
    state_axis: int
    state_shape: tuple[int, ...]
    squeezes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    packed: tuple[int, ...] | None = None
    routed: bool = False

    @classmethod
    def find(cls, function: StateFunction, batch_dim: BatchDim) -> SampleAxes:
        """Reads the inputs' axes from ``batch_dim`` and finds the state's by running one sample.

        Raises:
            ValueError: If ``batch_dim`` does not fit the inputs.
            StructureError: If no axis of the state scales with the number of samples.
        """
        leaves, _ = pytree.tree_flatten(function.inputs)
        axes, batch = input_axes(function.inputs, leaves, batch_dim)
        if batch == 1:
            return cls(axes, 1, 0, tuple(function.output_shape) or (1,))
        one = cls(axes, batch, 0, ())
        with (
            no_structure("the model does not run on a single sample"),
            torch.random.fork_rng(devices=[]),
        ):
            sample = [leaf[0] for leaf, _ in one._batched(leaves, range(1))]
            try:
                with Squeezes() as seen, PackedSeen() as packs:
                    state = one.of_one_sample(function, function.parameters, sample)
            except (RuntimeError, ValueError, TypeError, IndexError):
                # An axis may be missing by what was squeezed, and a step by what was packed.
                if not seen.found and not packs.found:
                    raise
            if packs.found:
                with PackedSeen() as packs:
                    function(function.parameters)
                one = replace(one, packed=tuple(packs.steps))
                state = one.of_one_sample(function, function.parameters, sample)
            if seen.found:
                with Squeezes() as seen:
                    function(function.parameters)
                one = replace(one, squeezes=tuple(seen.found))
                state = one.of_one_sample(function, function.parameters, sample)
        axis, shape = _state_axis(function.output_shape, tuple(state.shape), batch)
        return replace(one, state_axis=axis, state_shape=shape)

    def where_routed(self, function: StateFunction) -> SampleAxes | None:
        """The same with all rows taken where a mask selects some; ``None`` where none does.

        Raises:
            StructureError: If the model does not run on a single sample.
        """
        sample = [leaf[0] for leaf in self.split(function.inputs, range(1))]
        with (
            no_structure("the model does not run on a single sample"),
            torch.random.fork_rng(devices=[]),
            RoutingSeen() as seen,
        ):
            self.of_one_sample(function, function.parameters, sample)
        return replace(self, routed=True) if seen.found and not self.routed else None

    def _batched(self, leaves: list[Any], samples: range) -> list[tuple[Tensor, int]]:
        """The leaves that differ between samples: (samples first, index among the leaves)."""
        return [
            (leaf.movedim(axis, 0)[samples.start : samples.stop], index)
            for index, (leaf, axis) in enumerate(zip(leaves, self.inputs, strict=True))
            if axis is not None
        ]

    def split(self, inputs: Any, samples: range) -> list[Tensor]:
        """The inputs of some samples, each leaf with the samples as its first axis."""
        leaves, _ = pytree.tree_flatten(inputs)
        return [leaf for leaf, _ in self._batched(leaves, samples)]

    def of_one_sample(
        self, function: StateFunction, parameters: Mapping[str, Tensor], sample: list[Tensor]
    ) -> Tensor:
        """The state of one sample, whose leaves come without the sample axis."""
        leaves, spec = pytree.tree_flatten(function.inputs)
        remaining = iter(sample)
        filled = [
            leaf if axis is None else next(remaining).unsqueeze(axis)
            for leaf, axis in zip(leaves, self.inputs, strict=True)
        ]
        with (
            Squeezes(self.squeezes) if self.squeezes else nullcontext(),
            PackedAlone(self.packed) if self.packed is not None else nullcontext(),
            RoutedAlone() if self.routed else nullcontext(),
        ):
            return function(parameters, pytree.tree_unflatten(filled, spec))

    def to_samples(self, block: Tensor) -> Tensor:
        """Rows over the state to rows over samples: (k, n) → (k, B, *state_shape)."""
        axis = self.state_axis + 1
        shape = list(self.state_shape)
        shape[self.state_axis : self.state_axis + 1] = [self.batch, self.state_shape[self.state_axis]]
        return block.reshape(block.shape[0], *shape).movedim(axis, 1)

    def state_index(self) -> Tensor:
        """Position in the flattened state of every output of every sample: (B, s)."""
        size = self.batch * torch.Size(self.state_shape).numel()
        return self.to_samples(torch.arange(size).unsqueeze(0))[0].reshape(self.batch, -1)


def input_axes(inputs: Any, leaves: list[Any], batch_dim: BatchDim) -> tuple[tuple[int | None, ...], int]:
    """The axis of the samples in each leaf of the inputs, and their number.

    Raises:
        ValueError: If ``batch_dim`` does not fit the inputs.
    """
    if isinstance(batch_dim, int):
        first = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
        batch = _size(first, batch_dim)
        axes = [
            batch_dim if isinstance(leaf, Tensor) and _has(leaf, batch_dim, batch) else None
            for leaf in leaves
        ]
    else:
        axes = _broadcast_axes(inputs, batch_dim)
        sizes = {_size(leaf, axis) for leaf, axis in zip(leaves, axes, strict=True) if axis is not None}
        if len(sizes) != 1:
            raise ValueError(
                f"{argument('batch_dim', batch_dim)} gives the inputs {sorted(sizes)} samples, expected one "
                "number; name for every input the axis that holds its samples"
            )
        batch = sizes.pop()
    positive = tuple(
        None if axis is None else axis % leaf.dim() for leaf, axis in zip(leaves, axes, strict=True)
    )
    return positive, batch


def _broadcast_axes(inputs: Any, batch_dim: Any) -> list[int | None]:
    """One axis for each leaf, from axes given for the arguments."""
    pairs: list[tuple[Any, int | None]]
    if isinstance(inputs, Mapping) and isinstance(batch_dim, Mapping) and set(inputs) == set(batch_dim):
        pairs = [(inputs[name], batch_dim[name]) for name in inputs]
    elif isinstance(inputs, (tuple, list)) and isinstance(batch_dim, (tuple, list)):
        if len(inputs) != len(batch_dim):
            raise ValueError(
                f"batch_dim has {len(batch_dim)} entries for {len(inputs)} inputs; give one each"
            )
        pairs = list(zip(inputs, batch_dim, strict=True))
    else:
        raise ValueError(
            f"{argument('batch_dim', batch_dim)} does not have the form of the inputs, a "
            f"{type(inputs).__name__}; give one axis, or a tuple or dict of axes like the inputs"
        )
    return [axis for value, axis in pairs for _ in pytree.tree_leaves(value)]


def _size(leaf: Any, axis: int) -> int:
    if not isinstance(leaf, Tensor) or not -leaf.dim() <= axis < leaf.dim():
        shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
        raise ValueError(
            f"{argument('batch_dim', axis)} is not an axis of an input of shape {shape}; "
            f"name the axis that holds the samples, or {argument('batch_dim', None)} if there is none"
        )
    return int(leaf.shape[axis])


def _has(leaf: Tensor, axis: int, batch: int) -> bool:
    # A sparse tensor (an adjacency, say) cannot be taken apart.
    return leaf.layout is torch.strided and -leaf.dim() <= axis < leaf.dim() and leaf.shape[axis] == batch


def _state_axis(full: tuple[int, ...], single: tuple[int, ...], batch: int) -> tuple[int, tuple[int, ...]]:
    """The axis along which the state of a batch is longer than that of one sample."""
    differing = [axis for axis, (a, b) in enumerate(zip(full, single, strict=False)) if a != b]
    if len(full) != len(single) or len(differing) != 1 or full[differing[0]] != batch * single[differing[0]]:
        raise StructureError(
            f"no axis of the state holds the samples: its shape is {full} for {batch} samples "
            f"and {single} for one"
        )
    return differing[0], single
