"""Where the samples lie in the inputs and the state, and whether the model treats them one by one.

Two evaluations agree, and so do a sample alone and in the batch, and the batch run twice over as one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.capture import check_state
from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.hooks.module import OwnPasses
from ntkscope.engines.torch.hooks.sharded import of_fully_shard
from ntkscope.engines.torch.meter import ForwardMeter, ForwardSize
from ntkscope.engines.torch.samples.axes import BatchDim, SampleAxes, input_axes
from ntkscope.errors import argument, said

__all__ = ["COUPLED", "UNITS", "checked_axes"]

#: Why samples are not measured one by one.
COUPLED = (
    "the state of a sample depends on the other samples of the batch (batch norm in training mode, a "
    "contrastive head?)"
)

#: How far two evaluations may lie apart by rounding, in units of the last digit of the largest.
UNITS = 1024


def checked_axes(passes: OwnPasses, batch_dim: BatchDim | None) -> tuple[SampleAxes, Tensor, ForwardSize]:
    """Where the samples lie, the state of the batch, and what one forward pass computes.

    Raises:
        ValueError: If the model is random, its samples are coupled, or ``batch_dim`` does not fit.
    """
    if batch_dim is None:
        raise ValueError(
            f"{argument('batch_dim', None)} says that the samples are coupled, and hooks on layers measure "
            "samples one by one; name the axis that holds them"
        )
    leaves, _ = pytree.tree_flatten(passes.inputs)
    inputs, batch = input_axes(passes.inputs, leaves, batch_dim)
    # Forward passes of shards that no backward pass follows leave no graph behind.
    with passes.as_it_was(), torch.set_grad_enabled(not of_fully_shard(passes.model)):
        state = passes.state(passes.inputs)
        check_state(state, passes.is_chosen)
        state = state.detach()
        tolerance = UNITS * torch.finfo(state.dtype).eps * float(state.abs().max())
        meter = ForwardMeter()
        with meter:
            again = passes.state(passes.inputs).detach()
        if again.shape != state.shape or not float((again - state).abs().max()) <= tolerance:
            raise ValueError(
                "two evaluations of the model on the same inputs differ, so it is random "
                f"(dropout?); {said('call model.eval() first', 'leave --train-mode out')}, or make its "
                "randomness an input"
            )
        twice = _Twice(passes, passes.repeated(2, inputs))
        try:
            found = SampleAxes.find(twice, batch_dim)  # type: ignore[arg-type]
        except StructureError as error:
            raise ValueError(
                f"hooks on layers need samples that are treated on their own: {error}; name the samples' "
                f"axis by {argument('batch_dim')}"
            ) from error
        axes = dataclasses.replace(found, batch=batch)
        _check_alone(axes, twice, state, tolerance)
    return axes, state, meter.size()


def _check_alone(axes: SampleAxes, twice: _Twice, state: Tensor, tolerance: float) -> None:
    """One sample alone against the batch, and the batch against itself twice over."""
    sample = [leaf[0] for leaf in axes.split(twice.inputs, range(1))]
    alone = axes.of_one_sample(twice, {}, sample).reshape(-1)  # type: ignore[arg-type]
    rows = axes.to_samples(state.reshape(1, -1))[0].flatten(1)
    copies = dataclasses.replace(axes, batch=2 * axes.batch).to_samples(twice.state.reshape(1, -1))[0]
    apart = [float((alone - rows[0]).abs().max())]
    apart.append(float((copies.flatten(1) - rows.repeat(2, 1)).abs().max()))
    if not max(apart) <= tolerance:
        raise ValueError(
            f"{COUPLED}: alone and in the batch it differs by {max(apart):.2g}, of which rounding explains "
            f"{tolerance:.2g}; hooks on layers measure samples one by one"
        )


class _Twice:
    """The batch twice as a function, of which :meth:`SampleAxes.find` runs one sample."""

    def __init__(self, passes: OwnPasses, inputs: Any) -> None:
        self._passes = passes
        self.parameters: dict[str, Tensor] = {}
        self.inputs = inputs
        self.state = self({})
        self.output_shape = tuple(self.state.shape)

    def __call__(self, parameters: Any, inputs: Any = None) -> Tensor:
        found: Tensor = self._passes.state(self.inputs if inputs is None else inputs)
        return found.detach()
