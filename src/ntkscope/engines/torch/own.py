"""The user's own module, run as it was when it was taken hold of, and left as it is.

A copy would go on calling the original wherever the model closes over itself: lambdas and hooks,
``torch.vmap(self.f)``, a patched ``forward``, ``outputs=`` that uses a head. So there is no copy.
For the time of a call every submodule gets back the attributes that it had, with parameters and
buffers put in; what the call leaves behind (caches, counters, running averages) goes with them.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from ntkscope.engines.torch.compat import BATCH_NORMS
from ntkscope.engines.torch.outlines import Outline, outline_of
from ntkscope.errors import argument

__all__ = ["LayerTap", "OwnModule", "unwrapped"]

# Among a module's hooks, a key that none of the user's has.
_TAP = -1

# What nn.Module makes for every module, for itself alone.
_OWN_OF_MODULES = frozenset(name for name, value in vars(nn.Module()).items() if hasattr(value, "copy"))

# What holds other attributes, and is copied with them.
_CONTAINERS = frozenset(
    (dict, list, set, collections.OrderedDict, collections.deque, collections.defaultdict)
)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of wrappers that compute the same function.

    Raises:
        TypeError: For a TorchScript module, whose parameters cannot be exchanged.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "a TorchScript module cannot be differentiated by its parameters from outside; "
            "pass the module that it was made from"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    # torch.compile keeps the module that it compiled.
    original = vars(model).get("_modules", {}).get("_orig_mod")
    return unwrapped(original) if isinstance(original, nn.Module) else model


class LayerTap:
    """Watches the output of one submodule.

    Args:
        model: The model.
        name: Dotted name of the submodule.

    Raises:
        ValueError: If there is no such submodule.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules or name == "":
            known = ", ".join(itertools.islice((m for m in modules if m), 20))
            raise ValueError(f"the model has no submodule {name!r}; its submodules are: {known}")
        self._name = name
        self._caught: list[Any] = []
        self._is_watching = False
        self.module = modules[name]

    def catch(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """The hook that the submodule is given for the time of a call."""
        if self._is_watching:
            self._caught.append(output)

    def watch(self, call: Callable[[], Any]) -> Any:
        """What the submodule returned during the call.

        Raises:
            ValueError: If it was not called exactly once.
        """
        self._caught.clear()
        self._is_watching = True
        try:
            call()
        finally:
            self._is_watching = False
            caught, self._caught[:] = list(self._caught), []
        if len(caught) != 1:
            raise ValueError(
                f"the submodule {self._name!r} was called {len(caught)} times in one forward pass, "
                f"expected once; return the state from the model and pick it with {argument('outputs')}"
            )
        return caught[0]


class OwnModule:
    """A module whose attributes are those of the moment at which this was made.

    Args:
        model: The user's module.
        layer: Dotted name of a submodule whose output is wanted in place of the model's.
        outputs: Picks the state from what is returned; it may use the model.

    Raises:
        TypeError: As :func:`unwrapped`.
        ValueError: If there is no such submodule.
    """

    def __init__(
        self, model: nn.Module, layer: str | None = None, outputs: Callable[[Any], Any] | None = None
    ) -> None:
        self.model = unwrapped(model)
        self._tap = LayerTap(self.model, layer) if layer is not None else None
        self._watched = _Watched(self.model, self._tap, outputs)
        self._modules = list(self.model.modules())
        self._kept = [_kept_attributes(module) for module in self._modules]
        if self._tap is not None:
            kept = self._kept[next(i for i, m in enumerate(self._modules) if m is self._tap.module)]
            kept["_forward_hooks"] = collections.OrderedDict(kept["_forward_hooks"])
            kept["_forward_hooks"][_TAP] = self._tap.catch

        self._containers = [_containers(kept) for kept in self._kept]
        self._is_put = False

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """The attributes of every submodule as they were, and afterwards as they are; once for all within."""
        if self._is_put:
            yield
            return
        self._is_put = True
        try:
            with self._afresh():
                yield
        finally:
            self._is_put = False

    @contextmanager
    def _afresh(self) -> Iterator[None]:
        """As they were, even within a context in which a call has left something behind."""
        present = [module.__dict__ for module in self._modules]
        cached = parametrize._cache_enabled, parametrize._cache
        try:
            fresh = _Fresh()
            parametrize._cache_enabled, parametrize._cache = 0, {}
            for module, kept, (flat, deep) in zip(self._modules, self._kept, self._containers, strict=True):
                attributes = dict(kept)
                for name in flat:
                    attributes[name] = attributes[name].copy()
                for name in deep:
                    attributes[name] = fresh(attributes[name])
                object.__setattr__(module, "__dict__", attributes)
            yield
        finally:
            _put_back(self._modules, present, cached)

    def is_like(self, other: OwnModule) -> bool:
        """Whether the other's module has the same attributes, but for parameters and buffers."""
        return self.model is other.model and self.outline == other.outline

    @functools.cached_property
    def outline(self) -> Outline:
        """What tells it from the same module at another moment, but for parameters and buffers."""
        return outline_of(self._kept, unless=_TAP)

    def call(self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The state, with these parameters and buffers in place of the module's own."""
        named = {f"model.{name}": tensor for name, tensor in tensors.items()}
        with self._afresh():
            return functional_call(self._watched, named, args, kwargs)


class _Watched(nn.Module):
    """The model and what is picked of its output: both see the exchanged parameters."""

    def __init__(self, model: nn.Module, tap: LayerTap | None, outputs: Callable[[Any], Any] | None) -> None:
        super().__init__()
        self.model = model
        self._tap = tap
        self._outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._tap is None:
            result = self.model(*args, **kwargs)
        else:
            result = self._tap.watch(lambda: self.model(*args, **kwargs))
        return result if self._outputs is None else self._outputs(result)


def _kept_attributes(module: nn.Module) -> dict[str, Any]:
    """The module's attributes, with containers of their own, in which nothing hinders a product."""
    fresh = _Fresh()
    kept = {name: _outside_inference(fresh(value)) for name, value in vars(module).items()}
    # A sparse gradient is the same one, in a form that few operations take.
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        kept["sparse"] = False
    # In training mode batch norm uses the batch alone; its running averages are only written to.
    if isinstance(module, BATCH_NORMS) and module.training:
        averages = ("running_mean", "running_var", "num_batches_tracked")
        kept["_buffers"] = {n: None if n in averages else b for n, b in kept["_buffers"].items()}
        kept["track_running_stats"] = False
    return kept


def _containers(kept: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The attributes that are containers: torch's own, which hold no other, and the rest."""
    names = [name for name, value in kept.items() if type(value) in _CONTAINERS]
    flat = [
        name
        for name in names
        if name in _OWN_OF_MODULES and not any(type(item) in _CONTAINERS for item in _items(kept[name]))
    ]
    return flat, [name for name in names if name not in flat]


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _outside_inference(value: Any) -> Any:
    """A constant that was made in inference mode as one that gradients may pass by."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value


class _Fresh:
    """Copies of plain containers, however deep, that hold the same; one that is shared stays shared."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if kind not in _CONTAINERS:
            return value
        if id(value) in self._known:
            return self._known[id(value)]
        made = value.copy()
        self._known[id(value)] = made
        if kind is list or kind is collections.deque:
            for index, item in enumerate(value):
                made[index] = self(item)
        elif kind is not set:
            for key, item in value.items():
                made[key] = self(item)
        return made


def _put_back(modules: list[nn.Module], present: list[dict[str, Any]], cached: tuple[int, Any]) -> None:
    for module, own in zip(modules, present, strict=True):
        object.__setattr__(module, "__dict__", own)
    parametrize._cache_enabled, parametrize._cache = cached
