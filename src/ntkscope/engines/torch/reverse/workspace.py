"""Memory that reverse passes use again, where what one of them gave is not needed after the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Workspace"]


class Workspace:
    """Blocks in the order in which a pass asks for them; the next pass gets the same ones.

    Fresh memory is a page fault every 4 KiB, which took more than half of an exact trace: the C library
    gives back to the system what is freed, and asks for it anew.

    Args:
        most: Bytes that are kept; what goes beyond is fresh each time.
    """

    def __init__(self, most: int = 128 << 20) -> None:
        self._most = most
        self._kept = 0
        self._blocks: list[Tensor] = []
        # What was lent last of each: the passes of one model ask for the same shapes again and again.
        self._lent: list[Tensor | None] = []
        self._next = 0

    def begin(self) -> None:
        """From now on, what was lent is lent again."""
        self._next = 0

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of this shape, of the dtype and on the device of another tensor, with any values."""
        index = self._next
        self._next += 1
        if index == len(self._blocks):
            self._blocks.append(like.new_empty(0))
            self._lent.append(None)
        lent = self._lent[index]
        if (
            lent is not None
            and lent.shape == shape
            and lent.dtype == like.dtype
            and lent.device == like.device
        ):
            return lent
        count = math.prod(shape)
        block = self._blocks[index]
        if block.numel() < count or block.dtype != like.dtype or block.device != like.device:
            # The old one goes first, so that both are never there at once.
            self._kept -= block.nbytes
            self._blocks[index] = block = like.new_empty(0)
            self._lent[index] = None
            if self._kept + count * like.element_size() > self._most:
                return torch.empty(shape, dtype=like.dtype, device=like.device)
            self._blocks[index] = block = torch.empty(count, dtype=like.dtype, device=like.device)
            self._kept += block.nbytes
        self._lent[index] = lent = block[:count].view(shape)
        return lent
