"""One backward pass that is watched: what reaches every known layer, and its samples' gradients.

A tap is the identity on a layer's output. It keeps the layer's input as autograd keeps it, so that
checkpoints compute it again where they would, and meets the output's gradient in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.hooks.layers import Layer
from ntkscope.engines.torch.hooks.sharded import whole

__all__ = ["Arrival", "Place", "Taps", "places_of"]


@dataclass(frozen=True)
class Place:
    """Where the samples lie in a layer's output.

    Attributes:
        axis: The axis, whose length is a multiple of their number.
        shared: Where the layer is called without samples (on positions, say), which axis is theirs in the
            output that is repeated for them, so that each has a gradient of its own: ``"first"``, which
            has the length 1, or a ``"new"`` one before it.
    """

    axis: int = 0
    shared: Literal["", "first", "new"] = ""

    def repeated(self, x: Tensor, count: int) -> Tensor:
        """What is shared, for each of so many samples."""
        return x.expand(count, *(x.shape[1:] if self.shared == "first" else x.shape))

    def rows(self, x: Tensor, count: int) -> Tensor:
        """With the samples first and what a sample has several of after them: (count, f, ...)."""
        first = x.movedim(self.axis, 0)
        return first.unflatten(0, (count, first.shape[0] // count))


def places_of(layer: Layer, shape: tuple[int, ...], rows: int) -> list[Place]:
    """Where so many samples may lie in an output, likeliest first."""
    last = 1 if layer.images else max(0, len(shape) - layer.features)
    axes = [axis for axis in range(last) if shape[axis] == rows]
    if shape and last and shape[0] % rows == 0 and shape[0] > rows:
        axes.append(0)
    found = [Place(axis) for axis in axes]
    if layer.images:
        return found
    if shape and shape[0] == 1:
        found.append(Place(0, "first"))
    return [*found, Place(0, "new")]


class Arrival(Protocol):
    """What is done when the gradient of a layer's output has come."""

    def __call__(self, name: str, x: Tensor, delta: Tensor) -> None:
        """Of the layer of this name: its input (B, f, ...), and δ, shape (k, B, f, ...)."""
        ...


class _Tap(torch.autograd.Function):
    """The identity on an output; what it keeps goes through the saved tensors of autograd."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, arrived: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.arrived = arrived
        # A copy, so that what is written in place afterwards is not written into what was tapped.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        ctx.arrived(x, delta)
        return delta, None, None


class Taps:
    """Hooks on all known layers for the time of one pass.

    Args:
        modules: By name.
        layers: The known ones.
        places: Where the samples lie in their outputs; what is missing is put in when it is first called.

    Attributes:
        problem: The first exception in the backward pass, which is kept so that the pass ends as usual.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        layers: Mapping[str, Layer],
        places: dict[str, list[Place]],
    ) -> None:
        self._modules, self._layers, self._places = modules, layers, places
        self.problem: Exception | None = None

    @contextmanager
    def watch(self, probes: int, batch: int, arrival: Arrival) -> Iterator[None]:
        """Calls ``arrival`` for every layer and call of it, in the backward pass within.

        Args:
            probes: k, copies of the batch in the batch that is run, one after the other.
            batch: B.
            arrival: Takes what has come.
        """
        handles = [
            self._modules[name].register_forward_hook(
                self._hook(name, layer, probes, batch, arrival), prepend=True, with_kwargs=True
            )
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(
        self, name: str, layer: Layer, probes: int, batch: int, arrival: Arrival
    ) -> Callable[[nn.Module, Any, Any, Any], Any]:
        rows = probes * batch

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return None
            if name not in self._places:
                self._places[name] = places_of(layer, tuple(output.shape), rows)
            if not self._places[name]:
                return None
            place = self._places[name][0]
            if place.shared:
                output = place.repeated(output, rows)
            if not (torch.is_grad_enabled() and output.requires_grad):
                return output if place.shared else None
            x = args[0] if args else next(iter(kwargs.values()))

            def arrived(x: Tensor, delta: Tensor) -> None:
                if self.problem is None:
                    try:
                        x, delta = whole(x.detach()), whole(delta.detach())
                        x = place.repeated(x, rows) if place.shared else x
                        arrival(name, place.rows(x, rows)[:batch], _by_probe(place.rows(delta, rows), probes))
                    except Exception as error:
                        self.problem = error

            return _Tap.apply(output, x.detach(), arrived)  # type: ignore[no-untyped-call]

        return hook


def _by_probe(delta: Tensor, probes: int) -> Tensor:
    return delta.unflatten(0, (probes, delta.shape[0] // probes))
