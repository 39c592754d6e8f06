"""Probes of a sample whose outputs come in two strata, each with a sphere of its own.

A probe on the sphere of all s outputs has more or less of its length on some of them by chance, which
is noise wherever the diagonal of K_bb is not constant. Outputs of a ReLU that are 0 have no gradient
at all, so that half of the diagonal may be 0. With a sphere for them and one for the others,
E z zᵀ = I still holds, and what is left is the noise within each of the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["on_spheres", "strata_of"]

# Of fewer outputs a sphere is hardly one: two points, or a circle.
_SMALLEST = 4
# Squares of so many numbers are summed in single precision without losing a digit of it.
_SHORT = 1024


def strata_of(first: Tensor) -> Tensor | None:
    """The samples in which a stratum and its complement are both large enough.

    Args:
        first: Which outputs lie in it, shape (B, s).

    Returns:
        The same with the other samples' empty; ``None`` if all of them are.
    """
    sizes = first.sum(1)
    fit = (sizes >= _SMALLEST) & (first.shape[1] - sizes >= _SMALLEST)
    return first & fit[:, None] if bool(fit.any()) else None


def on_spheres(z: Tensor, first: Tensor | None) -> Tensor:
    """Scales points of spheres, in place, so that each stratum of m outputs has the squared length m.

    Args:
        z: Shape (k, B, *state of a sample), a view of the probes.
        first: Which outputs lie in the first stratum, shape (B, s); ``None``: there is only one.

    Returns:
        By what the squares of what follows from z are still to be multiplied: shape (k, B), float64.
    """
    if first is None:
        # Of the last axis in its own dtype, unless that is long: its numbers are not turned into float64.
        precision = None if z.shape[-1] <= _SHORT else torch.float64
        lengths = torch.linalg.vector_norm(z, dim=-1, dtype=precision).double().square()
        return z[0, 0].numel() / lengths.flatten(2).sum(2) if z.dim() > 3 else z.shape[2] / lengths
    flat = z.flatten(2)
    outputs = flat.shape[2]
    squares = flat.double().square()
    lengths = squares.sum(2)
    part, size = (squares * first).sum(2), first.sum(1)
    # Of a sample without strata the rest is all there is.
    ours = torch.where(size > 0, size / part, 1.0).sqrt()[:, :, None]
    theirs = ((outputs - size) / (lengths - part)).sqrt()[:, :, None]
    z.mul_(torch.where(first, ours, theirs).reshape(z.shape).to(z.dtype))
    return torch.ones_like(lengths)
