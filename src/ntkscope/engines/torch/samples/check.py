"""What tracing cannot know: a structure is used only if its values and gradients agree with the model's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ntkscope.engines.torch.errors import StructureError, first_line
from ntkscope.engines.torch.gradients.sides import square_sum
from ntkscope.engines.torch.graph.groups import Group
from ntkscope.engines.torch.memory import is_out_of_memory
from ntkscope.engines.torch.modes import CHECK_SEED
from ntkscope.engines.torch.samples.axes import SampleAxes
from ntkscope.engines.torch.samples.linearization import Linearization
from ntkscope.engines.torch.state import StateFunction

__all__ = ["check_structure"]

# Of values, relative to the largest; of squared norms of gradients, where a kink may fall on either side.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 4e-1}


def check_structure(
    function: StateFunction,
    axes: SampleAxes,
    parts: Iterable[tuple[range, Linearization]],
    samples: int,
) -> None:
    """Every sample on its own must give the model's state, and gradients that sum to autodiff's.

    Args:
        function: The model.
        axes: Where its samples lie.
        parts: The batch in parts, each run forward on its own.
        samples: So many of the first samples' gradients are compared, in whole parts.

    Raises:
        StructureError: If they do not, or the model does not run sample by sample.
    """
    try:
        probe, expected = _gradient_of_batch(function, axes, samples)
        sums: dict[Group, Tensor] = {}
        for part, linear in parts:
            _check_values(function, axes, linear.state, part)
            if part.start < samples:
                for gradient in linear.pull(probe[:, part.start : part.stop]):
                    own = gradient.factor.summed()
                    sums[gradient.group] = sums[gradient.group] + own if gradient.group in sums else own
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise StructureError(f"the model cannot run sample by sample ({first_line(error)})") from error
    found = sum(float(square_sum(total)) for total in sums.values())
    if not abs(found - expected) <= _GRADIENT_TOLERANCE[function.dtype] * max(found, expected):
        raise StructureError(
            "the gradients of single samples do not add up to the gradient of the batch: samples are "
            "coupled, an operation has its own backward pass, or a rule of add_rule is wrong; "
            f"squared norms {found:.6g} and {expected:.6g}"
        )


def _check_values(function: StateFunction, axes: SampleAxes, state: Tensor, part: range) -> None:
    expected = axes.to_samples(function.state.reshape(1, -1))[0]
    dtype = function.dtype
    tolerance = _TOLERANCE[dtype] * max(float(expected.abs().max()), torch.finfo(dtype).tiny)
    found = state.detach().reshape(len(part), *axes.state_shape)
    difference = float((found - expected[part.start : part.stop]).abs().max())
    if not difference <= tolerance:
        raise StructureError(
            "the state of a sample depends on the other samples of the batch (batch norm in "
            "training mode, a contrastive head?), or its computation depends on the values of "
            f"the inputs: alone and in the batch it differs by {difference:.2g}"
        )


def _gradient_of_batch(function: StateFunction, axes: SampleAxes, samples: int) -> tuple[Tensor, float]:
    """A probe for the first samples, (1, samples, *state of one), and ‖Jᵀz‖² by autodiff."""
    axes, inputs = axes.first(function.inputs, samples)
    leaves = {name: value.clone().requires_grad_() for name, value in function.parameters.items()}
    with torch.enable_grad(), function.operations():
        state = function(leaves, inputs)
        z = torch.randn(state.shape, generator=torch.Generator().manual_seed(CHECK_SEED), dtype=torch.float64)
        z = z.to(state.device, state.dtype)
        gradients = (
            torch.autograd.grad(state, list(leaves.values()), z, allow_unused=True)
            if state.requires_grad
            else ()
        )
    expected = sum(float(square_sum(gradient)) for gradient in gradients if gradient is not None)
    return axes.to_samples(z.reshape(1, -1)), expected
