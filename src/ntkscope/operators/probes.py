"""Random probes whose column j depends on (seed, stream, j) and on nothing else.

Three kinds. **Sphere probes** are uniform on the sphere of radius √n, and what products are made
with. Their law knows no coordinates: an error bar that holds for one kernel holds for every kernel
of its spectrum, however few coordinates it lives on, and equal samples prove, almost surely, that
there is no variance (a polynomial that is not constant takes no value twice). Signs repeat their
patterns: on d coordinates there are 2^(d-1), and k equal samples say nothing where k is of that
order. On kernels whose diagonal tr K/n is even both have the same variance,

    Var ωᵀKω = 2n/(n+2) (‖K‖²_F - tr²K/n)    and    2 (‖K‖²_F - Σ K_ii²),

(measured kernels: 0 to 9% apart); where a few large K_ii make most of ‖K‖_F signs have less, but
cannot know that they do. **Signs** serve where every sample has its own probe, and sums over
samples tell the error. **Normal probes** in single precision are for those that put every sample's part
on a sphere of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["normal_probes", "random_signs", "sphere_probes"]

# Normal numbers that are made at once: what they are made of stays in the processor's cache.
_BLOCK = 1 << 15


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
    _check(seed, stream, start)
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


def sphere_probes(size: int, start: int, stop: int, *, seed: int, stream: int = 0) -> NDArray[np.float64]:
    """Columns ``start..stop-1`` of an endless matrix of independent points on the sphere of radius √size.

    Like :func:`random_signs` they are the same for every chunk size, device and order of drawing.
    E ωωᵀ = I; for size 1 they are signs.

    Args:
        size: Length n of a column.
        start: First column.
        stop: One past the last column.
        seed: Chooses the matrix.
        stream: Chooses among independent matrices of one seed (sketch, residual, ...).

    Returns:
        Array of shape (size, stop - start); every column has the squared length n.

    Raises:
        ValueError: For a negative seed, stream or start.

    >>> block = sphere_probes(4, 0, 3, seed=0)
    >>> np.sum(block**2, axis=0).round(12).tolist()
    [4.0, 4.0, 4.0]
    """
    _check(seed, stream, start)
    probes = np.empty((stop - start, size))
    for row, column in enumerate(range(start, stop)):
        bits = np.random.Philox(key=[seed, stream], counter=[0, column, 1, 0])
        # In place: fresh memory takes longer than the numbers.
        gaussian = np.random.Generator(bits).standard_normal(out=probes[row])
        # Not by BLAS, whose sums depend on the machine, and whose threads cost more than they save.
        gaussian *= np.sqrt(size / np.square(gaussian).sum())
    return probes.T


def normal_probes(size: int, start: int, stop: int, *, seed: int, stream: int = 0) -> NDArray[np.float32]:
    """Columns ``start..stop-1`` of an endless matrix of independent standard normal numbers.

    Box and Muller's √(-2 log u) (cos 2πv, sin 2πv), in a quarter of the time of NumPy's normal numbers.
    They reach to 6.7 standard deviations. Like :func:`random_signs` they are the same for every chunk
    size, device and order of drawing, up to rounding of NumPy's functions.

    Args:
        size: Length of a column.
        start: First column.
        stop: One past the last column.
        seed: Chooses the matrix.
        stream: Chooses among independent matrices of one seed.

    Returns:
        Array of shape (size, stop - start).

    Raises:
        ValueError: For a negative seed, stream or start.

    >>> normal_probes(3, 0, 2, seed=0).shape
    (3, 2)
    """
    _check(seed, stream, start)
    probes = np.empty((stop - start, size), dtype=np.float32)
    for row, column in enumerate(range(start, stop)):
        bits = np.random.Philox(key=[seed, stream], counter=[0, column, 2, 0])
        for first in range(0, size, _BLOCK):
            _fill_normal(probes[row, first : first + _BLOCK], bits)
    return probes.T


def _fill_normal(out: NDArray[np.float32], bits: np.random.Philox) -> None:
    half = -(-len(out) // 2)
    numbers = bits.random_raw(half).astype("<u8", copy=False).view("<u4").astype(np.float32)
    radii, angles = numbers[:half], numbers[half:]
    # (u + 1/2) / 2³², which is never 0.
    radii += np.float32(0.5)
    radii *= np.float32(2.0**-32)
    np.log(radii, out=radii)
    radii *= np.float32(-2)
    np.sqrt(radii, out=radii)
    angles *= np.float32(2 * np.pi * 2.0**-32)
    np.multiply(np.cos(angles), radii, out=out[:half])
    rest = len(out) - half
    np.multiply(np.sin(angles[:rest]), radii[:rest], out=out[half:])


def _check(seed: int, stream: int, start: int) -> None:
    if min(seed, stream, start) < 0:
        raise ValueError(
            f"seed, stream and column must not be negative, found {seed}, {stream} and {start}; "
            "use a seed such as 0"
        )
