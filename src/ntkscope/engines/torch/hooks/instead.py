"""Hooks on layers in the place of a graph, for a model that runs sample by sample and cannot be traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ntkscope.engines.base import Refusal
from ntkscope.engines.torch.errors import StructureError, first_line, no_structure
from ntkscope.engines.torch.hooks.engine import HooksEngine
from ntkscope.engines.torch.hooks.module import Moment
from ntkscope.engines.torch.hooks.samples import HookedSamples
from ntkscope.engines.torch.modes import undisturbed
from ntkscope.engines.torch.samples.check import GradientsError, ValuesError
from ntkscope.engines.torch.state import StateFunction
from ntkscope.operators.ledger import Ledger

__all__ = ["hooked_instead"]

#: What two evaluations of the state may differ by, in units of the last digit of the largest.
_UNITS = 1024


def hooked_instead(
    function: StateFunction, error: StructureError, options: Mapping[str, Any], ledger: Ledger
) -> HookedSamples | Refusal:
    """The samples by hooks, at the moment of the function, or why there are none of either kind.

    Not where samples are coupled, nor where a graph gives other gradients than the model's own backward pass.

    Args:
        function: The state, whose samples have no graph.
        error: Why.
        options: Of :class:`HooksEngine`.
        ledger: Where products are entered.
    """
    is_coupled = isinstance(error, ValuesError) and error.sample is None
    if is_coupled or isinstance(error, GradientsError):
        return Refusal(str(error))
    try:
        samples = _hooked(function, options)
    except StructureError as failure:
        return Refusal(f"{error}; nor do hooks on layers serve: {failure}")
    samples.ledger = ledger
    samples.reason = f"it cannot be traced ({first_line(error)})"
    return samples


def _hooked(function: StateFunction, options: Mapping[str, Any]) -> HookedSamples:
    """The samples by hooks.

    Raises:
        StructureError: If they are not those of the function.
    """
    moment = Moment(function.parameters | function.constants().fixed, function.as_it_was)
    doing = no_structure("the model's own backward pass cannot be watched")
    with undisturbed(), function.as_it_was(), doing:
        engine = HooksEngine(function.module, function.inputs, moment=moment, **options)
    tolerance = _UNITS * torch.finfo(function.dtype).eps * float(function.state.abs().max())
    if engine.state.shape != function.state.shape or engine.parameters != {
        name: tuple(value.shape) for name, value in function.parameters.items()
    }:
        raise StructureError("they see another state, or other parameters")
    apart = float((engine.state - function.state).abs().max())
    if not apart <= tolerance:
        raise StructureError(f"the state is another one in the model's own pass, by {apart:.2g}")
    return engine.samples()
