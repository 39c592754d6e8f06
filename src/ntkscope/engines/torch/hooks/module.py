"""The user's module as it is run here: forward and ``backward()``, and left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.backward import without_hooks
from ntkscope.engines.torch.capture import as_arguments, checked_inputs
from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.hooks.sharded import local, reshard, whole, without_waiting_gradients
from ntkscope.engines.torch.modes import undisturbed
from ntkscope.engines.torch.own import LayerTap, unwrapped

__all__ = ["Moment", "OwnPasses"]


@dataclass(frozen=True)
class Moment:
    """A module as it was, where that was kept before.

    Attributes:
        values: Of parameters and buffers by name.
        as_it_was: A context in which the module has its attributes of then.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    as_it_was: Callable[[], AbstractContextManager[None]] = nullcontext


class OwnPasses:
    """A module at one moment of its training, and what to watch of it.

    The values of parameters and buffers are kept (of sharded ones the own shard), and put back for the
    time of a pass where they have changed since.

    Args:
        model: The module, sharded or not.
        inputs: What it is called with, this process's samples.
        outputs: Picks the state from what is returned.
        layer: Name of a submodule whose output is the state.
        moment: Of the module, where it is not as it is now.

    Attributes:
        model: The module inside of wrappers.
        parameters: The trainable ones by name, a tied one once.
        inputs: The batch, detached.

    Raises:
        TypeError: If the model is no module.
        ValueError: If it has no trainable parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        outputs: Callable[[Any], Any] | None = None,
        layer: str | None = None,
        moment: Moment | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self._moment = moment or Moment()
        self._tap = None if layer is None else LayerTap(self.model, layer)
        self._outputs = outputs
        self.is_chosen = layer is not None or outputs is not None
        reshard(self.model)
        named = dict(self.model.named_parameters())
        self.parameters = {name: p for name, p in named.items() if p.requires_grad}
        if not self.parameters:
            raise ValueError(
                "the model has no trainable parameter, so its NTK is empty; "
                "set requires_grad=True on the parameters that you want in θ"
            )
        wrong = next((name for name, p in self.parameters.items() if p.is_complex()), None)
        if wrong is not None:
            raise ValueError(
                f"the parameter {wrong!r} is complex, which hooks on layers do not take; "
                "leave engine='hooks' out"
            )
        every, kept = named | dict(self.model.named_buffers()), self._moment.values
        self._held = list(every.values())
        self._buffers = len(named)
        with torch.no_grad():
            self._kept = [
                kept[name].detach() if name in kept else local(tensor).detach().clone()
                for name, tensor in every.items()
            ]
        self._modes = [(module, module.training) for module in self.model.modules()]
        floating = next((p.dtype for p in named.values() if p.is_floating_point()), torch.float32)
        self.inputs = checked_inputs(inputs, floating)

    @property
    def device(self) -> torch.device:
        """Where the inputs lie."""
        leaves = pytree.tree_leaves(self.inputs)
        return next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))

    def repeated(self, times: int, axes: tuple[int | None, ...]) -> Any:
        """The batch so many times, one after the other along the samples' axes."""
        leaves, spec = pytree.tree_flatten(self.inputs)
        more = [
            leaf if axis is None else torch.cat([leaf] * times, dim=axis)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        return pytree.tree_unflatten(more, spec)

    def state(self, inputs: Any) -> Any:
        """What is watched, by one forward pass."""
        # Clones, since models write into their inputs.
        args, kwargs = as_arguments(pytree.tree_map_only(Tensor, torch.clone, inputs))

        def call() -> Any:
            return self.model(*args, **kwargs)

        if self._tap is None:
            found = call()
        else:
            hook = self._tap.module.register_forward_hook(self._tap.catch)
            try:
                found = self._tap.watch(call)
            finally:
                hook.remove()
        found = found if self._outputs is None else self._outputs(found)
        return whole(found)

    def gradients(self) -> dict[str, Tensor | None]:
        """What the last ``backward()`` has left, within :meth:`as_it_was`."""
        return {name: parameter.grad for name, parameter in self.parameters.items()}

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """For passes: the values of the moment that was kept, no gradients; all put back afterwards."""
        trainable = list(self.parameters.values())
        before = [(p, p.grad) for p in trainable]
        cuda = {tensor.device for tensor in self._kept if tensor.is_cuda}
        with (
            undisturbed(),
            self._moment.as_it_was(),
            torch.random.fork_rng(devices=cuda),
            without_hooks(trainable),
            self._in_their_modes(),
            self._values(),
            without_waiting_gradients(self.model),
        ):
            for parameter in trainable:
                parameter.grad = None
            try:
                yield
            finally:
                for parameter, gradient in before:
                    parameter.grad = gradient

    @contextmanager
    def _in_their_modes(self) -> Iterator[None]:
        """The modes, training or evaluation, in which the submodules were."""
        now = [(module, module.training) for module, _ in self._modes]
        try:
            for module, mode in self._modes:
                module.training = mode
            yield
        finally:
            for module, mode in now:
                module.training = mode

    @contextmanager
    def _values(self) -> Iterator[None]:
        """The kept values, and afterwards those that were there."""
        # What was gathered of other values is gathered anew.
        reshard(self.model)
        with torch.no_grad():
            changed = {
                index: local(tensor).clone()
                for index, (tensor, kept) in enumerate(zip(self._held, self._kept, strict=True))
                if not _same(local(tensor), kept)
            }
            for index in changed:
                local(self._held[index]).copy_(self._kept[index])
        try:
            yield
        finally:
            reshard(self.model)
            with torch.no_grad():
                for index, now in changed.items():
                    local(self._held[index]).copy_(now)
                for index in range(self._buffers, len(self._held)):
                    # Running averages and counters that a pass has moved.
                    if index not in changed and not _same(local(self._held[index]), self._kept[index]):
                        local(self._held[index]).copy_(self._kept[index])


def _same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal to the bit; NaN is equal to itself."""
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())
