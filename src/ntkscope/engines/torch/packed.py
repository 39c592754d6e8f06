"""Packed sequences of one sample: padded to the batch's steps, with its length as a value and no shape.

A packed sequence has as many rows as its lengths add up to, so that every length would be a graph of its
own. Of one sample all steps are kept, the padding among them; recurrent layers find their ends by the
lengths, and what is padded again is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ntkscope.engines.torch.compat import PACK, PAD, TorchFunctionMode
from ntkscope.engines.torch.recurrences import Lengths

__all__ = ["PackedAlone", "PackedSeen", "lengths_of"]

#: Those of the sequences that are packed within a :class:`PackedAlone`, by their batch sizes' identity.
_open: list[dict[int, tuple[Tensor, Lengths]]] = []


def lengths_of(batch_sizes: Tensor) -> Lengths | None:
    """The lengths of sequences that are only packed by name; ``None`` of those that are truly packed."""
    for known in _open:
        if id(batch_sizes) in known:
            return known[id(batch_sizes)][1]
    return None


class PackedSeen(TorchFunctionMode):
    """Sees whether sequences are packed, and to how many steps they are padded again.

    Attributes:
        found: Whether there were any.
        steps: Of each time that they were padded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self.steps: list[int] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is PACK:
            self.found = True
        elif func is PAD:
            padded = result[0]
            self.steps.append(int(padded.shape[1 if args[2] else 0]))
        return result


class PackedAlone(TorchFunctionMode):
    """Packs by name alone.

    Args:
        steps: To how many steps the whole batch is padded, each time that it is.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__()
        self._steps = list(steps)
        self._padded = 0
        self._known: dict[int, tuple[Tensor, Lengths]] = {}

    def __enter__(self) -> Any:
        _open.append(self._known)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        _open.remove(self._known)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is PACK:
            return self._pack(*args)
        known = lengths_of(args[1]) if func is PAD else None
        if known is None:
            return func(*args, **(kwargs or {}))
        return self._pad(known, *args)

    def _pack(self, x: Tensor, values: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        x = x.transpose(0, 1) if batch_first else x
        lengths = Lengths(values.to(x.device), x.shape[0])
        sizes = torch.full((x.shape[0],), x.shape[1], dtype=torch.int64)
        self._known[id(sizes)] = sizes, lengths
        # What a padding holds is never seen, and may be anything.
        return lengths.masked(x, 0.0).flatten(0, 1), sizes

    def _pad(
        self, lengths: Lengths, data: Tensor, sizes: Tensor, batch_first: bool, value: float, steps: int
    ) -> tuple[Tensor, Tensor]:
        x = lengths.masked(data.unflatten(0, (lengths.steps, -1)), value)
        steps = self._steps[self._padded] if self._padded < len(self._steps) else steps
        self._padded += 1
        x = F.pad(x, [0] * (2 * (x.dim() - 1)) + [0, steps - lengths.steps], value=value)
        return x.transpose(0, 1) if batch_first else x, lengths.values.cpu()
