"""Per-sample gradients of all parameters from one forward and one backward pass, layer by layer.

The batch is run k times over as one batch, each copy with a probe z_i of its own, and
Σ_{b,i} z_{b,i}·f(x_b) is pulled back: what reaches a layer's output is δ of every sample and probe. A
parameter's factor is complete when its last use has come, is handed on, and is let go.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.gradients.factors import Factor, Outer, add_uses, stack_features
from ntkscope.engines.torch.hooks.layers import Layer, layer_of_module
from ntkscope.engines.torch.hooks.module import OwnPasses
from ntkscope.engines.torch.hooks.taps import Arrival, Place, Taps
from ntkscope.engines.torch.processes.exchange import Exchange
from ntkscope.engines.torch.samples.axes import SampleAxes

__all__ = ["Consumer", "Group", "Hooked", "Pulled"]

#: Names of parameters whose gradients are one factor: one, or a weight and its bias.
Group: TypeAlias = tuple[str, ...]

#: What is done with a group's gradients for all probes, this process's samples.
Consumer: TypeAlias = Callable[[Group, Factor], None]


@dataclass(frozen=True)
class Pulled:
    """What a pass leaves.

    Attributes:
        states: Of every row, shape (k, B, *state of a sample).
        gradients: The user's own, by parameter.
    """

    states: Tensor
    gradients: Mapping[str, Tensor | None]


@dataclass
class Hooked:
    """A module whose known layers can be watched.

    Attributes:
        passes: The module.
        axes: Where this process's samples lie in the inputs and the state.
        exchange: The processes.
        state: Of this process's batch.
        modules: The submodules by name.
        layers: The known ones with parameters.
        places: Where the samples lie in their outputs.
        uses: How many gradients a group's parameters get in a pass.
        owners: Which process multiplies a group's gradients of all samples.
    """

    passes: OwnPasses
    axes: SampleAxes
    exchange: Exchange
    state: Tensor
    modules: Mapping[str, nn.Module] = field(init=False)
    layers: Mapping[str, Layer] = field(init=False)
    places: dict[str, list[Place]] = field(default_factory=dict)
    uses: dict[Group, int] = field(default_factory=dict)
    owners: dict[Group, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.passes.model
        names = {id(parameter): name for name, parameter in self.passes.parameters.items()}
        self.modules = dict(model.named_modules())
        found = {name: layer_of_module(module, names) for name, module in self.modules.items()}
        self.layers = {name: layer for name, layer in found.items() if layer is not None}
        owners: dict[str, int] = defaultdict(int)
        for layer in self.layers.values():
            for parameter in layer.parameters.values():
                owners[parameter] += 1
        self._shared = {name for name, count in owners.items() if count > 1}

    @property
    def batch(self) -> int:
        """This process's samples."""
        return self.axes.batch

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.state.device

    @property
    def dtype(self) -> torch.dtype:
        """The state's."""
        return self.state.dtype

    @property
    def outputs(self) -> int:
        """The size of one sample's state."""
        return math.prod(self.axes.state_shape)

    def groups(self, name: str) -> list[Group]:
        """The groups of a layer's parameters."""
        layer = self.layers[name]
        own = tuple(layer.parameters.values())
        if layer.is_joint and not self._shared & set(own):
            return [own]
        return [(parameter,) for parameter in own]

    def factors(self, name: str, x: Tensor, delta: Tensor) -> dict[Group, Factor]:
        """The gradients of a layer's groups, from its input and δ."""
        layer = self.layers[name]
        found = layer.factors(x, delta)
        groups = self.groups(name)
        if len(groups) == 1 and len(found) > 1:
            outers = [factor for factor in found.values() if isinstance(factor, Outer)]
            return {groups[0]: stack_features(outers)}
        return {(layer.parameters[attribute],): factor for attribute, factor in found.items()}

    def split(self, group: Group, gradient: Tensor) -> dict[str, Tensor]:
        """A group's gradient, (P,), by parameter."""
        if len(group) == 1:
            return {group[0]: gradient}
        weight, bias = (self.passes.parameters[name] for name in group)
        both = gradient.reshape(bias.numel(), -1)
        return {group[0]: both[:, :-1].reshape(weight.shape), group[1]: both[:, -1]}

    # Passes.

    def pull(self, z: Tensor, consume: Consumer, only: frozenset[Group] | None = None) -> Pulled:
        """The gradients of every sample for probes z of shape (k, B, *state of a sample), group by group.

        Args:
            z: The probes.
            consume: Is given every group once, in the order of the backward pass.
            only: The groups that are wanted.

        Raises:
            ValueError: As the model.
        """
        waiting: dict[Group, list[Factor]] = defaultdict(list)

        def arrived(name: str, x: Tensor, delta: Tensor) -> None:
            if only is not None and not only & set(self.groups(name)):
                return
            for group, factor in self.factors(name, x, delta).items():
                if only is None or group in only:
                    waiting[group].append(factor)
                    if len(waiting[group]) == self.uses.get(group, 0):
                        consume(group, add_uses(waiting.pop(group)))

        pulled = self.run(z, arrived)
        with torch.no_grad():
            # Where a pass uses a parameter less often than the one in which uses were counted.
            for group in sorted(waiting):
                consume(group, add_uses(waiting[group]))
        return pulled

    def run(self, z: Tensor, arrival: Arrival) -> Pulled:
        """One forward and backward pass; ``arrival`` sees every layer's input and δ."""
        probes = len(z)
        if probes * self.batch == 1:
            # Of one row, the samples' axis would not be known.
            z = torch.cat([z, torch.zeros_like(z)])

        def cut(name: str, x: Tensor, delta: Tensor) -> None:
            arrival(name, x, delta[:probes])

        taps = Taps(self.modules, self.layers, self.places)
        with self.passes.as_it_was():
            inputs = self.passes.repeated(len(z), self.axes.inputs)
            with taps.watch(len(z), self.batch, cut):
                rows = self.to_rows(self.passes.state(inputs), len(z))
                if rows.requires_grad:
                    (rows * z.to(rows.dtype)).sum().backward()
            gradients = self.passes.gradients()
        if taps.problem is not None:
            raise taps.problem
        return Pulled(rows.detach()[:probes], gradients)

    def to_rows(self, state: Tensor, times: int) -> Tensor:
        """The state of the batch so many times, to (k, B, *state of a sample).

        Raises:
            ValueError: If it has another shape than so many samples give.
        """
        shape, axis = list(self.axes.state_shape), self.axes.state_axis
        shape[axis] *= times * self.batch
        if list(state.shape) != shape:
            raise ValueError(
                f"the state has shape {tuple(state.shape)} for {times} copies of the batch, expected "
                f"{tuple(shape)}: the model does not treat samples one by one; its samples are coupled, or "
                "their number is written into it"
            )
        rows = dataclasses.replace(self.axes, batch=times * self.batch).to_samples(state.unsqueeze(0))[0]
        return rows.unflatten(0, (times, self.batch))

    def own_rows(self, block: Any) -> Tensor:
        """Of a block over the whole state, (k, n), this process's samples: (k, B, *state of a sample)."""
        every = dataclasses.replace(self.axes, batch=self.exchange.batch)
        own = self.exchange.own
        return every.to_samples(block)[:, own.start : own.stop]
