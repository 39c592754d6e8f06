"""What is found out and checked before anything is measured: nothing of it is taken on trust.

- Two evaluations agree, and so do a sample alone and in the batch, and the batch run several times over.
- Where the samples lie in a layer's output is read off its gradient: with a probe for some samples alone,
  nothing reaches the rows of the others. A code with as many ones for every sample tells each from all
  others. Samples that are coupled show themselves here.
- The samples' gradients add up to the user's own ``.grad`` of the same backward pass for every parameter,
  so that a parameter with a use that no hook sees is refused by name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.engines.base import layer_of
from ntkscope.engines.torch.capture import check_state
from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.gradients.factors import Factor
from ntkscope.engines.torch.hooks.exchange import Exchange
from ntkscope.engines.torch.hooks.gradients import Group, Hooked
from ntkscope.engines.torch.hooks.layers import KNOWN
from ntkscope.engines.torch.hooks.module import OwnPasses
from ntkscope.engines.torch.hooks.sharded import (
    BUCKETS,
    is_sharded,
    of_fully_shard,
    sketch,
    sketch_of_shard,
    whole,
)
from ntkscope.engines.torch.meter import ForwardMeter, ForwardSize
from ntkscope.engines.torch.modes import CHECK_SEED
from ntkscope.engines.torch.samples.axes import BatchDim, SampleAxes, input_axes
from ntkscope.engines.torch.witness import check_finite, differing
from ntkscope.errors import argument, said

__all__ = ["Seen", "check_gradients", "checked_axes", "codes", "find_places"]

# How far two evaluations may lie apart by rounding, in units of the last digit of the largest.
_UNITS = 1024

_COUPLED = (
    "the state of a sample depends on the other samples of the batch (batch norm in training mode, a "
    "contrastive head?)"
)


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
        tolerance = _UNITS * torch.finfo(state.dtype).eps * float(state.abs().max())
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
            f"{_COUPLED}: alone and in the batch it differs by {max(apart):.2g}, of which rounding explains "
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


# Where the samples are.


def codes(count: int) -> Tensor:
    """A code of zeros and ones for each of so many samples, none of which covers another: (c, count)."""
    length = next(n for n in itertools.count(2) if math.comb(n, n // 2) >= count)
    words = itertools.islice(itertools.combinations(range(length), length // 2), count)
    code = torch.zeros(length, count, dtype=torch.bool)
    for sample, word in enumerate(words):
        code[list(word), sample] = True
    return code


@dataclass
class Seen:
    """What a pass has shown of the layers.

    Attributes:
        order: Their names and the shapes of one sample's input and δ, as they came.
        lowest: The least precise dtype of a δ.
        wrong: Layers at which a sample's gradient reached another's rows.
    """

    order: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    lowest: torch.dtype = torch.float64
    wrong: set[str] = field(default_factory=set)


def find_places(hooked: Hooked, at_once: int) -> Seen:
    """Finds where the samples lie in every layer's output, and how often each parameter is used.

    Args:
        hooked: The model; its places and uses are filled in.
        at_once: Copies of the batch in a pass.

    Raises:
        ValueError: If there is a layer where they do not lie apart, or processes differ.
    """
    exchange = hooked.exchange
    code = codes(max(exchange.counts))[:, : hooked.batch].to(hooked.device)
    seen = _seen(hooked, code, at_once)
    while wrong := set().union(*exchange.objects(seen.wrong)):
        # In the order of the forward pass: where the samples lie decides what the layers after it are given.
        called = list(hooked.places)
        first = next(name for name in called if name in wrong)
        for name in called[called.index(first) + 1 :]:
            del hooked.places[name]
        hooked.places[first] = hooked.places[first][1:]
        try:
            if hooked.places[first]:
                seen = _seen(hooked, code, at_once)
                continue
        except (RuntimeError, ValueError, IndexError):
            # An output that is repeated for samples does not fit where there are samples in it already.
            pass
        raise ValueError(
            f"the gradient of one sample reaches other samples in the output of {_called(hooked, first)}: "
            f"{_COUPLED}, or the layer does not have them along an axis of its output"
        )
    orders = exchange.objects(seen.order)
    if any(order != seen.order for order in orders):
        raise ValueError(
            "the processes use the model's layers in different orders, or on samples of different shapes; "
            "bring all samples to one shape (padding)"
        )
    counts = Counter(group for name, _, _ in seen.order for group in hooked.groups(name))
    hooked.uses.update(counts)
    return seen


def _seen(hooked: Hooked, code: Tensor, at_once: int) -> Seen:
    """One look at all layers with probes for some samples alone."""
    state = hooked.state
    seen = Seen()
    generator = torch.Generator().manual_seed(CHECK_SEED)
    rows = hooked.to_rows(state, 1)
    units = _UNITS * torch.finfo(state.dtype).eps
    for start in range(0, len(code), at_once):
        here = code[start : start + at_once]
        z = torch.randn(len(here), *rows.shape[1:], generator=generator, dtype=torch.float64)
        z = z.to(state.device, state.dtype) * here.reshape(*here.shape, *[1] * (z.dim() - 2))
        seen.order.clear()

        def arrived(name: str, x: Tensor, delta: Tensor, here: Tensor = here) -> None:
            seen.order.append((name, tuple(x.shape[1:]), tuple(delta.shape[2:])))
            seen.lowest = max(seen.lowest, delta.dtype, key=lambda dtype: torch.finfo(dtype).eps)
            reached = delta.detach().abs().flatten(2).amax(2)
            limit = 16 * torch.finfo(delta.dtype).eps * float(reached.max())
            if not float((reached * ~here).max()) <= limit:
                seen.wrong.add(name)

        pulled = hooked.run(z, arrived)
        apart = float((pulled.states - rows).abs().max())
        if not apart <= units * float(rows.abs().max()):
            raise ValueError(
                f"the state changes by {apart:.2g} when the batch is run {len(here)} times over as one: "
                "samples are coupled, or a layer that is called without samples (on positions, say) is not "
                "used by broadcasting its output over them"
            )
    return seen


# Whether all uses were seen.


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
    if missed:
        raise ValueError(_missed(hooked, missed))


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


def _called(hooked: Hooked, module: str) -> str:
    """A module by its name and class."""
    found: nn.Module | None = hooked.modules.get(module)
    kind = "" if found is None else f" ({type(found).__name__})"
    return f"the module {module!r}{kind}"


def _missed(hooked: Hooked, name: str) -> str:
    """Why the gradient of a parameter is not what hooks have seen."""
    module = layer_of(name)
    where = _called(hooked, "" if module == "self" else module)
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
