"""The state of a model as it is measured: weighted by a loss, over scaled parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ntkscope.engines.torch.losses import square_root_of
from ntkscope.engines.torch.own import unwrapped
from ntkscope.engines.torch.preconditioner import roots_of
from ntkscope.engines.torch.state import StateFunction

__all__ = ["weighted_state"]


def weighted_state(
    model: nn.Module,
    inputs: Any,
    outputs: Callable[[Any], Tensor] | None,
    layer: str | None,
    loss: str | Callable[[Tensor], Tensor] | None,
    reduction: str,
    class_dim: int | None,
    scale: Any,
    proven: StateFunction | None,
) -> StateFunction:
    """The state, weighted by the root of a loss's Hessian, over scaled parameters."""
    picked: Callable[[Any], Tensor] | None = outputs
    if loss is not None:
        plain = StateFunction(model, inputs, outputs, layer, proven=proven)
        weigh, proven = square_root_of(loss, plain.state, reduction, class_dim), plain

        def weighted(result: Any) -> Tensor:
            return weigh(result if outputs is None else outputs(result))

        picked = weighted
    roots = None if scale is None else roots_of(unwrapped(model), scale)
    return StateFunction(model, inputs, picked, layer, proven=proven, roots=roots)
