"""Orthonormal bases of blocks that are seen through Gram matrices only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Block, Map
from ntkscope.runs.grams import Grams

__all__ = ["extend_basis"]

Small = NDArray[np.float64]

#: A Gram matrix shows a column's new direction while its square is above this share.
_VISIBLE = 1e-10
#: Directions below this times √n rounding errors of the longest column are rounding.
_CUTOFF = 10.0
#: But never more than this share of it: √n is the worst case, and in half precision above 1. A
#: direction of rounding in the basis costs a product, and is no error.
_LARGEST_CUTOFF = 0.05


def extend_basis(
    space: Map, grams: Grams, basis: str, block: Block, scale: float
) -> tuple[Block | None, list[int]]:
    """Orthonormal columns that, with the basis so far, span the new columns too.

    Cholesky QR, twice, on Gram matrices in float64. A Gram matrix hides what is
    smaller than the square root of its rounding, so columns that show no new
    direction wait until the others are projected out. Columns of which nothing is
    left but rounding (10 √n epsilon of the longest column) are dropped: a
    rank-deficient block gives fewer columns than it has.

    Args:
        space: The map whose block algebra is used.
        grams: Where the basis so far is kept.
        basis: Its name there.
        block: New columns, shape (n, k).
        scale: Length of the longest column that is spanned, old ones included.

    Returns:
        The new columns, shape (n, r) with r ≤ k (``None`` if there are none), and which
        r columns of the block they span.
    """
    # A product is exact to √n rounding errors; projections enlarge them.
    cutoff = min(_CUTOFF * space.shape[0] ** 0.5 * space.epsilon, _LARGEST_CUTOFF) * scale
    accepted: list[Block] = []
    spanned: list[int] = []
    old = grams.pieces(basis)
    residual = _project_out(space, old, block)
    columns = np.arange(len(space.inner(block, block)))
    while len(columns):
        visible = space.inner(residual, residual) > cutoff**2
        if not visible.any():
            break
        residual = space.combine(residual, np.eye(len(columns))[:, visible])
        columns = columns[visible]
        fresh, kept = _orthonormal_part(space, residual)
        for _ in range(2):
            fresh = _project_out(space, [*old, *accepted], fresh)
            fresh = space.combine(fresh, _inverse_root(space.gram(fresh, fresh)))
        accepted.append(fresh)
        spanned.extend(columns[kept].tolist())
        waiting = np.setdiff1d(np.arange(len(columns)), kept)
        if not len(waiting):
            break
        residual = space.combine(residual, np.eye(len(columns))[:, waiting])
        residual = _project_out(space, [*old, *accepted], residual)
        columns = columns[waiting]
    return (space.concat(accepted) if accepted else None), spanned


def _project_out(space: Map, pieces: list[Block], block: Block) -> Block:
    """(I - QQᵀ)² X, with the pieces of Q one after the other."""
    for _ in range(2):
        for piece in pieces:
            block = block - space.combine(piece, space.gram(piece, block))
    return block


def _inverse_root(gram: Small) -> Small:
    """R⁻¹ of the Cholesky factor R of a Gram matrix near the identity."""
    lower = np.linalg.cholesky((gram + gram.T) / 2)
    return np.linalg.inv(lower).T


def _orthonormal_part(space: Map, block: Block) -> tuple[Block, list[int]]:
    """Q of the columns whose new direction the Gram matrix shows, and which these are.

    Cholesky with the longest remainder first, so that the columns left over are
    combinations of those taken with coefficients of order one.
    """
    gram = space.gram(block, block)
    size = len(gram)
    lower = np.zeros((size, size))
    left, kept = np.diag(gram).copy(), list[int]()
    squares = left.copy()
    while len(kept) < size:
        left[kept] = 0
        j = int(np.argmax(left / squares))
        if left[j] <= _VISIBLE * squares[j]:
            break
        rank = len(kept)
        column = (gram[:, j] - lower[:, :rank] @ lower[j, :rank]) / np.sqrt(left[j])
        lower[:, rank] = column
        left = left - column**2
        kept.append(j)
    coefficients = np.zeros((size, len(kept)))
    coefficients[kept] = np.linalg.inv(lower[kept][:, : len(kept)]).T
    return space.combine(block, coefficients), kept
