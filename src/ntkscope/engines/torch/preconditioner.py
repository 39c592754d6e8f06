"""D of J D Jᵀ: how far an optimizer moves every parameter for its gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["roots_of"]


def roots_of(model: nn.Module, scale: Any) -> dict[str, Tensor]:
    """√D of every trainable parameter by name.

    Args:
        model: Whose parameters.
        scale: D: a mapping of names to numbers or tensors of the parameter's shape (or that broadcast
            to it; 1 where there is none), or an optimizer of the model.

    Raises:
        TypeError: If it is neither, or an optimizer that is not known.
        ValueError: For a name or a shape that does not fit, an entry that is negative or not finite, and
            an optimizer that has taken no step.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if isinstance(scale, torch.optim.Optimizer):
        given = _of_optimizer(named, scale)
    elif isinstance(scale, Mapping):
        given = _of_mapping(named, scale)
    else:
        raise TypeError(
            f"scale must be an optimizer or a mapping of parameters' names to tensors, found "
            f"{type(scale).__name__}; pass scale=optimizer"
        )
    return {name: _root(name, value, named[name]) for name, value in given.items()}


def _of_mapping(named: Mapping[str, Tensor], scale: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(scale) - set(named))
    if unknown:
        raise ValueError(
            f"scale names the parameter {unknown[0]!r}, which is none of the trainable ones; choose from "
            + ", ".join(list(named)[:20])
        )
    return {name: scale.get(name, 1.0) for name in named}


def _root(name: str, value: Any, parameter: Tensor) -> Tensor:
    real = parameter.detach().real
    number = torch.as_tensor(value, dtype=torch.float64).detach().to(real.device, real.dtype)
    # A complex parameter is two real ones along a last axis; optimizers have averages of each.
    pairs = parameter.is_complex()
    if pairs and number.shape != (*parameter.shape, 2):
        number = number.unsqueeze(-1)
    try:
        full = number.expand((*parameter.shape, 2) if pairs else parameter.shape)
    except RuntimeError as error:
        raise ValueError(
            f"scale has the shape {tuple(number.shape)} for {name}, expected {tuple(parameter.shape)}; "
            "give one number for each of its entries"
        ) from error
    if not bool((full.isfinite() & (full >= 0)).all()):
        raise ValueError(
            f"scale has entries for {name} that are negative or not finite; D must not be negative, "
            "since J D Jᵀ is measured by its square root"
        )
    return full.sqrt().clone()


def _of_optimizer(named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in groups for p in named.values()):
        raise ValueError("the optimizer has none of the model's parameters; pass that of this model")
    # What the optimizer does not have does not move.
    return {
        name: _step(name, p, groups[id(p)], optimizer) if id(p) in groups else 0.0
        for name, p in named.items()
    }


def _step(name: str, p: Tensor, group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Any:
    """How far a parameter moves for a gradient; neither momentum nor weight decay is in it."""
    rate = float(group["lr"])
    if isinstance(optimizer, torch.optim.SGD):
        return rate
    kinds = (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad)
    if not isinstance(optimizer, kinds):
        raise TypeError(
            f"the steps of {type(optimizer).__name__} are not known; pass scale= as a mapping of "
            "parameters' names to what their gradients are multiplied with"
        )
    state = optimizer.state.get(p, {})
    if not state:
        raise ValueError(
            f"the optimizer has no averages for {name} yet; let it take a step first, or leave scale= out"
        )
    if isinstance(optimizer, torch.optim.Adagrad):
        slower = 1 + (float(state["step"]) - 1) * group["lr_decay"]
        return rate / slower / (_real(state["sum"]).sqrt() + group["eps"])
    if isinstance(optimizer, torch.optim.RMSprop):
        variance = _real(state["square_avg"])
        if group["centered"]:
            variance = variance - _real(state["grad_avg"]) ** 2
        return rate / (variance.clamp(min=0).sqrt() + group["eps"])
    moments = _real(state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"])
    correction = 1 - group["betas"][1] ** float(state["step"])
    return rate / (moments.sqrt() / math.sqrt(correction) + group["eps"])


def _real(average: Tensor) -> Tensor:
    """Averages of a complex parameter: of its real and its imaginary part, along a last axis."""
    return torch.view_as_real(average) if average.is_complex() else average
