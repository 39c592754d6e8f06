"""Probes as blocks of rows in torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["one_hot"]


def one_hot(
    places: Tensor,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    start: int = 0,
    rows: int | None = None,
) -> Tensor:
    """Rows of the identity, shape (rows, size): row start + i is 1 at places[i], and all others are zero.

    Args:
        places: Where the ones are, shape (k,).
        size: Numbers in a row.
        dtype: Of the rows.
        device: Where they lie.
        start: The first row with a one.
        rows: How many rows; start + k if ``None``.
    """
    stop = start + len(places)
    block = torch.zeros(stop if rows is None else rows, size, dtype=dtype, device=device)
    block[torch.arange(start, stop), places] = 1
    return block
