"""Count what one forward pass computes and writes, to plan chunks and to predict costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ntkscope.engines.torch.compat import FLOP_FORMULAS, DispatchMode, pytree

__all__ = ["ForwardMeter", "ForwardSize"]


@dataclass(frozen=True)
class ForwardSize:
    """Size of one forward pass.

    Attributes:
        operations: Tensor operations that were run.
        elements: Numbers that they wrote.
        flops: Floating-point operations of the matrix products and convolutions.
    """

    operations: int
    elements: int
    flops: int


class ForwardMeter(DispatchMode):
    """Context manager that counts the operations run inside it; read :meth:`size` afterwards."""

    def __init__(self) -> None:
        super().__init__()
        # Formulas take as long as what they count, and the steps of a recurrence are alike.
        self._known: dict[Any, int] = {}
        self._operations = 0
        self._elements = 0
        self._flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._operations += 1
            if isinstance(result, Tensor):
                self._elements += result.numel()
            else:
                written = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
                self._elements += sum(leaf.numel() for leaf in written)
            if func.overloadpacket in FLOP_FORMULAS:
                self._flops += self._flops_of(func, args, kwargs or {}, result)
        return result

    def _flops_of(self, func: Any, args: Any, kwargs: Any, result: Any) -> int:
        formula = FLOP_FORMULAS[func.overloadpacket]
        if kwargs or not all(isinstance(value, Tensor) for value in args):
            return int(formula(*args, **kwargs, out_val=result))
        key = func, tuple([value.shape for value in args])
        if key not in self._known:
            self._known[key] = int(formula(*args, out_val=result))
        return self._known[key]

    def size(self) -> ForwardSize:
        """What was counted."""
        return ForwardSize(self._operations, self._elements, int(self._flops))
