"""A mode that sees what transformations (vmap, grad, jvp) compute, on tensors that they do not wrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ntkscope.engines.torch.compat import DispatchMode

__all__ = ["Below"]


class Below(DispatchMode):
    """Hands over each operation that runs below transformations, and after autograd.

    Args:
        run: (operation, arguments, named arguments) ↦ its result.
    """

    def __init__(self, run: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self._run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(func, args, kwargs or {})
