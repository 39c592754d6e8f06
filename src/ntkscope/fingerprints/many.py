"""Many fingerprints: every pair's alignment, and how far each is from the one before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.fingerprints.fingerprint import Fingerprint
from ntkscope.results import Estimate
from ntkscope.runs.kept import inner_products

__all__ = ["Matrix", "alignment_matrix", "velocity"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A number of every pair, with its error; NumPy takes it as its values.

    Attributes:
        values: Shape (k, k).
        stderr: Standard errors, shape (k, k); nan where unknown.
    """

    values: NDArray[np.float64]
    stderr: NDArray[np.float64]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype)


def alignment_matrix(fingerprints: Sequence[Fingerprint], *, errors: bool = True) -> Matrix:
    """cos(K_a, K_b) of every pair of kernels, from their fingerprints alone.

    O((Bm)²) arithmetic a pair, less where the ring takes a part of the pairs, and no pass through a
    model.

    Args:
        fingerprints: Of the same inputs with the same probes.
        errors: Whether standard errors are wanted, which is nearly all of the work: without them a
            hundred fingerprints take a moment.

    Returns:
        The matrix of shape (k, k), ones on its diagonal, with standard errors.

    Raises:
        TypeError: As :meth:`Fingerprint.alignment`.
        ValueError: As :meth:`Fingerprint.alignment`, and for none.
    """
    _check_any(fingerprints)
    count = len(fingerprints)
    if not errors:
        return Matrix(_cosines(fingerprints), np.full((count, count), math.nan))
    values, stderr = np.eye(count), np.zeros((count, count))
    for a, first in enumerate(fingerprints):
        for b in range(a + 1, count):
            found = first.alignment(fingerprints[b])
            values[a, b] = values[b, a] = found.value
            stderr[a, b] = stderr[b, a] = math.nan if found.stderr is None else found.stderr
    return Matrix(values, stderr)


def _cosines(fingerprints: Sequence[Fingerprint]) -> NDArray[np.float64]:
    first = fingerprints[0]
    for other in fingerprints:
        first.check_comparable(other)
    inner = inner_products(
        [one.products() for one in fingerprints], first.ring, first.probes, shared=first.centered
    )
    norms = np.sqrt(np.diag(inner))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines: NDArray[np.float64] = np.clip(inner / np.outer(norms, norms), -1.0, 1.0)
    np.fill_diagonal(cosines, 1.0)
    return cosines


def velocity(fingerprints: Sequence[Fingerprint]) -> list[Estimate]:
    """1 - cos(K_t, K_{t+1}) of each moment and the next: how fast the kernel turns.

    Args:
        fingerprints: In the order of training.

    Returns:
        One estimate less than fingerprints.

    Raises:
        TypeError: As :meth:`Fingerprint.alignment`.
        ValueError: As :meth:`Fingerprint.alignment`, and for none.
    """
    _check_any(fingerprints)
    return [one.distance(after) for one, after in itertools.pairwise(fingerprints)]


def _check_any(fingerprints: Sequence[Fingerprint]) -> None:
    if not len(fingerprints):
        raise ValueError("found no fingerprint; pass a list of what ntk.fingerprint() returned")
