"""Random signs whose column j depends on (seed, stream, j) and on nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["random_signs"]


def random_signs(size: int, start: int, stop: int, *, seed: int, stream: int = 0) -> NDArray[np.int8]:
    """Columns ``start..stop-1`` of an endless matrix of independent signs ±1.

    Each column is drawn by its own counter-based generator (Philox), so the
    numbers are the same for every chunk size, device and order of drawing.

    Args:
        size: Length of a column.
        start: First column.
        stop: One past the last column.
        seed: Chooses the matrix.
        stream: Chooses among independent matrices of one seed (sketch, residual, ...).

    Returns:
        Array of shape (size, stop - start), int8, entries ±1.

    Raises:
        ValueError: For a negative seed, stream or start.

    >>> random_signs(4, 1, 3, seed=0)[:, 1].tolist() == random_signs(4, 2, 3, seed=0)[:, 0].tolist()
    True
    """
    if min(seed, stream, start) < 0:
        raise ValueError(
            f"seed, stream and column must not be negative, found {seed}, {stream} and {start}; "
            "use a seed such as 0"
        )
    words = -(-size // 64)
    signs = np.empty((stop - start, size), dtype=np.int8)
    for row, column in enumerate(range(start, stop)):
        # The counter's lowest word is what advances, so columns never overlap.
        bits = np.random.Philox(key=[seed, stream], counter=[0, column, 0, 0]).random_raw(words)
        octets = np.ascontiguousarray(bits, dtype="<u8").view(np.uint8)
        signs[row] = np.unpackbits(octets, count=size, bitorder="little")
    signs *= 2
    signs -= 1
    return signs.T
