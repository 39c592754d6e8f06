"""Whether hooks have seen all uses of all parameters: what they saw must add up to the own gradient.

The samples' gradients are summed and compared with ``.grad`` of the same backward pass for every
parameter, so that one with a use that no hook sees is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ntkscope.engines.base import layer_of
from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.hooks.gradients import Group, Hooked
from ntkscope.engines.torch.hooks.layers import KNOWN
from ntkscope.engines.torch.hooks.module import OwnPasses
from ntkscope.engines.torch.hooks.places import Seen, called
from ntkscope.engines.torch.hooks.sharded import BUCKETS, is_sharded, sketch, sketch_of_shard, whole
from ntkscope.engines.torch.modes import CHECK_SEED
from ntkscope.engines.torch.processes.exchange import Exchange
from ntkscope.engines.torch.witness import check_finite, differing

__all__ = ["check_gradients"]


def check_gradients(hooked: Hooked, seen: Seen) -> None:
    """The samples' gradients must add up to the user's own, parameter by parameter.

    Between processes sketches of 64 numbers a parameter are compared.

    Raises:
        ValueError: If they do not; the message names the parameter and its module.
    """
    exchange, passes, state = hooked.exchange, hooked.passes, hooked.state
    generator = torch.Generator().manual_seed(CHECK_SEED + 1 + exchange.rank)
    rows = hooked.to_rows(state, 1)
    z = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(state.device, state.dtype)
    is_one = exchange.size == 1
    found: dict[str, Tensor | None] = dict.fromkeys(passes.parameters)

    def add(group: Group, factor: Factor) -> None:
        for name, gradient in hooked.split(group, factor.summed().sum(0)).items():
            found[name] = gradient.reshape(-1) if is_one else sketch(gradient, passes.parameters[name])

    gradients = hooked.pull(z, add).gradients
    if is_one:
        expected = {
            name: None if gradient is None else _flat(whole(gradient)) for name, gradient in gradients.items()
        }
        check_finite(expected)
    else:
        found, expected = _sketches(exchange, passes, found, gradients)
    missed = differing(expected, found, max(seen.lowest, state.dtype, key=lambda d: torch.finfo(d).eps))
    exchange.agree(ValueError(_missed(hooked, missed)) if missed else None)


def _flat(gradient: Tensor) -> Tensor:
    return (gradient if gradient.layout is torch.strided else gradient.to_dense()).reshape(-1)


def _sketches(
    exchange: Exchange,
    passes: OwnPasses,
    found: Mapping[str, Tensor | None],
    gradients: Mapping[str, Tensor | None],
) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """Sketches of both, over all processes."""
    zero = torch.zeros(BUCKETS, dtype=torch.float64, device=passes.device)
    ours, theirs, scales = [], [], []
    for name, parameter in passes.parameters.items():
        gradient, own = gradients[name], found[name]
        sharded = is_sharded([parameter])
        ours.append(zero if own is None else own)
        if gradient is None:
            theirs.append(zero)
        else:
            theirs.append(sketch_of_shard(gradient) if sharded else sketch(gradient, parameter))
        scales.append(sharded)
    one, other = exchange.sum(torch.stack(ours)), exchange.sum(torch.stack(theirs))
    # Gradients of shards are means over the processes, unless the user has said otherwise.
    mean = other * torch.tensor([exchange.size if s else 1 for s in scales], device=other.device)[:, None]
    other = min(mean, other, key=lambda scaled: float((scaled - one).norm()))
    return dict(zip(found, one, strict=True)), dict(zip(found, other, strict=True))


def _missed(hooked: Hooked, name: str) -> str:
    """Why the gradient of a parameter is not what hooks have seen."""
    module = layer_of(name)
    where = called(hooked, "" if module == "self" else module)
    known = any(name in layer.parameters.values() for layer in hooked.layers.values())
    why = (
        "it is used outside of that module's own forward pass, or the module's output is changed by others"
        if known
        else f"this is none of the layers that are known: {KNOWN}"
    )
    return (
        f"hooks on layers do not see all uses of the parameter {name!r} of {where}: {why}. Put it into a "
        "known layer and call that, or take it out of θ by requires_grad_(False)"
    )
