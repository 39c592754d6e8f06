"""What was proven of a module, for as long as it lives: its next kernel needs not be compared anew.

A state is evaluated twice when it is made, with the parameters in their places and with others in them,
to see that nothing is random and that no parameter is reached by another path. For the same module, in
the same condition and on the same inputs, the answer is the same one.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.constants import have_one_form, is_equal, outlines
from ntkscope.engines.torch.meter import ForwardSize
from ntkscope.engines.torch.outlines import Outline

__all__ = ["Claim", "keep", "recall"]

# Proofs of one module, the last ones.
_MOST = 4
# What was given is kept to be compared; where it is large, two passes are long beside all else.
_MOST_BYTES = 4 << 20

_PROVEN: weakref.WeakKeyDictionary[nn.Module, list[tuple[Claim, ForwardSize]]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Claim:
    """What a proof is of.

    Attributes:
        outline: The module's.
        layer: Name of the submodule that is watched.
        outputs: What picks the state.
        parameters: Name, shape, dtype and device of each trainable one.
        given: The batch, frozen parameters and buffers.
    """

    outline: Outline
    layer: str | None
    outputs: Callable[[Any], Any] | None
    parameters: list[Any]
    given: Any

    @classmethod
    def of(
        cls,
        outline: Outline,
        layer: str | None,
        outputs: Callable[[Any], Any] | None,
        parameters: Mapping[str, Tensor],
        given: Any,
    ) -> Claim:
        """The claim that a state of these is what it seems."""
        return cls(outline, layer, outputs, outlines(parameters), given)

    def follows_from(self, other: Claim) -> bool:
        """Whether what was proven is this."""
        return (
            (self.layer, self.parameters) == (other.layer, other.parameters)
            and self.outputs is other.outputs
            and have_one_form(self.given, other.given)
            and all(map(is_equal, _tensors(self.given), _tensors(other.given)))
            and self.outline == other.outline
        )

    def without_owning(self) -> Claim | None:
        """The same, which does not keep the module alive; ``None`` where it cannot be kept so."""
        tensors = _tensors(self.given)
        if not all(map(_is_dense, tensors)) or sum(tensor.nbytes for tensor in tensors) > _MOST_BYTES:
            return None
        outline = self.outline.without_owning()
        if outline is None or not _holds_nothing(self.outputs):
            return None
        return Claim(outline, self.layer, self.outputs, self.parameters, self.given)


def recall(module: nn.Module, claim: Claim) -> ForwardSize | None:
    """The size of the forward pass for which this was proven; ``None`` if it was not."""
    known = _PROVEN.get(module, [])
    return next((size for proven, size in known if claim.follows_from(proven)), None)


def keep(module: nn.Module, claim: Claim, size: ForwardSize) -> None:
    """Keeps a proof, in place of the oldest one."""
    own = claim.without_owning()
    if own is not None:
        _PROVEN[module] = [(own, size), *_PROVEN.get(module, [])][:_MOST]


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided


def _holds_nothing(outputs: Any) -> bool:
    """Whether it may be kept: a plain function that closes over nothing, which might be the module."""
    if outputs is None:
        return True
    return isinstance(outputs, types.FunctionType) and not any(
        (outputs.__closure__, outputs.__defaults__, outputs.__kwdefaults__, outputs.__dict__)
    )
