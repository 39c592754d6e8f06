"""Fixes taken out one at a time, and a model that each of them was made for."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fuzz.models import Spec
from ntkscope.engines.torch import forward, kernel, own, pullback, state
from ntkscope.engines.torch.graph import recorder
from ntkscope.engines.torch.samples import check, jacobian
from ntkscope.runs import ring

__all__ = ["FAULTS", "Fault"]

Patch = tuple[Any, str, Any]


@dataclass(frozen=True)
class Fault:
    """A fix that is taken out.

    Attributes:
        number: The class of faults that it mended.
        patches: What is put in its place: object, name, value.
        spec: A model that is wrong without it.
    """

    number: int
    patches: tuple[Patch, ...]
    spec: Spec


def _model(*blocks: str, source: str = "values", sink: str = "mean", batch: int = 5, **options: Any) -> Spec:
    named = tuple((name, 10 + number) for number, name in enumerate(blocks))
    return Spec(7, source, named, sink, batch, 3, **options)


def _always(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


_TO_COMPLEX = torch.view_as_complex


def _without_imaginary_gradient(value: Tensor) -> Tensor:
    return _TO_COMPLEX(torch.stack([value[..., 0], value[..., 1].detach()], -1))


def _real_gradient(self: state.StateFunction, name: str, value: Any) -> Any:
    """A complex value as pairs; a gradient (known once there is a state) without its imaginary part."""
    if value is None or not value.is_complex():
        return value
    pairs = torch.view_as_real(value.resolve_conj())
    return pairs * torch.tensor([1.0, 0.0]) if hasattr(self, "state") else pairs


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Inference mode is left as it is."""
    yield


_UNCHECKED: tuple[Patch, ...] = tuple((m, "check_structure", _always(None)) for m in (check, jacobian))

_PULLBACK = pullback.Pullback

FAULTS: dict[str, Fault] = {
    "a path besides the module's": Fault(
        1, ((state, "differing", _always("")),), _model("weights in a list")
    ),
    "a copy": Fault(
        1,
        ((own, "unwrapped", copy.deepcopy), (state, "check_leaves", _always(None))),
        _model("lambda over self"),
    ),
    "an unchecked structure": Fault(2, _UNCHECKED, _model("batch mean of gradients")),
    "imaginary parts": Fault(
        3,
        (
            (torch, "view_as_complex", _without_imaginary_gradient),
            (state.StateFunction, "_real", _real_gradient),
        ),
        _model("complex poles"),
    ),
    "inference mode": Fault(
        4, tuple((m, "undisturbed", _undisturbed) for m in (state, kernel)), _model("tied", mode="inference")
    ),
    "no gradients": Fault(
        5, tuple((m, "undisturbed", _undisturbed) for m in (state, kernel)), _model("tied", mode="no_grad")
    ),
    "forward mode alone": Fault(
        6,
        ((forward, "DoubleBackward", forward.ForwardMode), (forward, "is_transpose", _always(True))),
        _model("old function"),
    ),
    "one way back": Fault(
        6,
        tuple((_PULLBACK, name, _PULLBACK._together) for name in ("_one_by_one", "_anew")),
        _model("function that cuts"),
    ),
    "products that are not the transpose": Fault(
        7, ((forward, "is_transpose", _always(True)),), _model("buckets by frequency", sink="all", batch=12)
    ),
    "forward mode of padding": Fault(
        13, ((forward, "is_transpose", _always(True)),), _model("padded buckets", sink="all", batch=12)
    ),
    "numbers drawn anew": Fault(
        8, ((recorder, "is_random", _always(False)), *_UNCHECKED), _model("seeded noise")
    ),
    "nothing between two probes of a sample": Fault(
        11,
        ((ring, "_within", lambda same, means, mean: 0.0),),
        Spec(
            10025,
            "by name",
            (("transposed convolution", 307624), ("in-place power", 690964), ("linear", 9957)),
            "head outside",
            batch=1,
            steps=3,
            mode="inference",
        ),
    ),
}
