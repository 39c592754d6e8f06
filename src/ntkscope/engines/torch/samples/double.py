"""A second look in float64, where rounding in float32 may have fallen on either side of a kink."""

from __future__ import annotations

import copy
import dataclasses
import math

import torch

from ntkscope.engines.torch.graph.groups import groups_of
from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.reverse.autograd import AutogradReverse
from ntkscope.engines.torch.samples.axes import SampleAxes
from ntkscope.engines.torch.samples.derived import derived_weights
from ntkscope.engines.torch.samples.linearization import Linearization
from ntkscope.engines.torch.samples.sums import BatchGradient
from ntkscope.engines.torch.state import StateFunction

__all__ = ["agrees_in_double"]

# Of the whole gradient.
_TOLERANCE = 1e-8


def agrees_in_double(function: StateFunction, axes: SampleAxes, graph: Graph, samples: int) -> bool:
    """Whether graph and model give the same gradients, parameter by parameter, with everything in float64.

    Args:
        function: The model.
        axes: Where its samples lie.
        graph: The state of one sample.
        samples: So many at a time.

    Returns:
        ``False`` too where the model does not run in float64.
    """
    if function.dtype == torch.float64:
        return False
    try:
        wide = function.in_double()
        z = function.witness().probe.double()
        expected = wide.gradients_of(z)
        found = _by_samples(wide, axes, graph, z, samples)
    except (RuntimeError, TypeError, ValueError):
        return False
    sizes = [0.0 if g is None else float(g.norm()) for g in expected.values()]
    limit = _TOLERANCE * math.sqrt(sum(size**2 for size in sizes))
    return all(
        float((found[name] - (0.0 if own is None else own.reshape(-1))).norm()) <= limit
        for name, own in expected.items()
    )


def _by_samples(
    wide: StateFunction, axes: SampleAxes, graph: Graph, z: torch.Tensor, samples: int
) -> dict[str, torch.Tensor]:
    """The sum of the samples' gradients by the graph."""
    # A copy, so that the compiled module of the narrow one is not taken along.
    constants = copy.deepcopy(graph.constants).double()
    doubled = dataclasses.replace(
        graph,
        constants=constants,
        derivation=graph.derivation and dataclasses.replace(graph.derivation, constants=constants),
        uses=tuple(dataclasses.replace(use, dtype=torch.float64) for use in graph.uses),
    )
    groups = groups_of(doubled)
    probe = axes.to_samples(z.reshape(1, -1))
    total = BatchGradient(doubled, wide.parameters)
    derived = derived_weights(doubled, wide.parameters)
    weights = wide.parameters | (derived.values if derived else {})
    for start in range(0, axes.batch, samples):
        part = range(start, min(start + samples, axes.batch))
        leaves = axes.split(wide.inputs, part)
        reverse = AutogradReverse(doubled, weights, leaves, z.device)
        linear = Linearization(doubled, groups, reverse, derived)
        total.add(linear.pull(probe[:, part.start : part.stop]))
    return total.by_parameter()
