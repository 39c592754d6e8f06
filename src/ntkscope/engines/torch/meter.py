"""Count what one forward pass computes and writes, to plan chunks and to predict costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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


class ForwardMeter(TorchDispatchMode):
    """Context manager that counts the operations run inside it; read :meth:`size` afterwards."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations = 0
        self._elements = 0
        self._flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch loads its whole compiler, for seconds, to say that this is not compiled.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._operations += 1
            written = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            self._elements += sum(leaf.numel() for leaf in written)
            if func._overloadpacket in flop_registry:
                self._flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result

    def size(self) -> ForwardSize:
        """What was counted."""
        return ForwardSize(self._operations, self._elements, int(self._flops))
