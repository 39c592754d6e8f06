"""Matrices of operators, on the host in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.composed import as_map
from ntkscope.operators.space import Map

__all__ = ["dense_map", "dense_matrix", "on_host"]

# Columns of the identity at a time.
_TILE = 64


def on_host(array: Any) -> NDArray[np.float64]:
    """An array of any framework as one of NumPy."""
    # NumPy knows no bfloat16.
    detached = array.detach().cpu().double() if hasattr(array, "detach") else array
    return np.asarray(detached, dtype=np.float64)


def dense_matrix(operator: Any) -> NDArray[np.float64]:
    """A kernel, shape (n, n): by tiles from layer factors where it is a model's, else column by column."""
    engine = getattr(operator, "engine", None)
    return dense_map(as_map(operator)) if engine is None else on_host(engine.dense())


def dense_map(operator: Map) -> NDArray[np.float64]:
    """A symmetric map column by column, n products."""
    size = operator.shape[0]
    whole = operator.identity(0, size)
    tiles = [
        operator.gram(whole, operator.apply(operator.identity(start, min(start + _TILE, size))))
        for start in range(0, size, _TILE)
    ]
    matrix: NDArray[np.float64] = np.concatenate(tiles, axis=1)
    return (matrix + matrix.T) / 2
