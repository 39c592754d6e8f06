"""Gauss rules: what Lanczos recurrences know of a spectrum, with bounds on either side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Quadrature", "share_above", "values_of"]

Small = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Rules for every probe, Σⱼ wⱼ f(θⱼ) with Σⱼ wⱼ = 1, one on either side of the truth.

    For f whose even derivatives are all negative or all positive (log, x log x, 1/x), Gauss and
    Gauss-Radau with a node at 0 lie on different sides of ωᵀf(K)ω/n, which tells the error of too few
    steps (Golub and Meurant 2010).

    Attributes:
        nodes: Of the Gauss rules, shape (k, m), from 0 up.
        weights: Shape (k, m).
        radau_nodes: Of the Gauss-Radau rules, shape (k, m + 1).
        radau_weights: Shape (k, m + 1).
    """

    nodes: Small
    weights: Small
    radau_nodes: Small
    radau_weights: Small

    @staticmethod
    def of_recurrence(diagonal: Small, beside: Small) -> Quadrature:
        """The rules of Lanczos recurrences.

        Args:
            diagonal: α of every probe and step, shape (k, m).
            beside: β, the length of what each step leaves, shape (k, m).
        """
        nodes, vectors = np.linalg.eigh(_tridiagonal(diagonal, beside[:, :-1]))
        # A node at 0 of m + 1: its last α is β_m² eᵀT⁻¹e, with e the last unit vector.
        floor = np.finfo(np.float64).eps * np.abs(nodes).max(axis=1, keepdims=True)
        ends = vectors[:, -1] ** 2 * beside[:, -1:] ** 2
        last = np.divide(ends, np.maximum(nodes, floor), out=np.zeros_like(ends), where=ends > 0).sum(axis=1)
        longer = np.concatenate([diagonal, last[:, None]], axis=1)
        radau, radau_vectors = np.linalg.eigh(_tridiagonal(longer, beside))
        return Quadrature(
            np.maximum(nodes, 0), vectors[:, 0] ** 2, np.maximum(radau, 0), radau_vectors[:, 0] ** 2
        )

    @staticmethod
    def of_eigenvalues(values: Small) -> Quadrature:
        """The one exact rule."""
        nodes = np.maximum(np.asarray(values, dtype=np.float64), 0)[None]
        weights = np.full(nodes.shape, 1 / nodes.shape[1])
        return Quadrature(nodes, weights, nodes, weights)

    @staticmethod
    def joined(parts: Sequence[Quadrature]) -> Quadrature:
        """The rules of all probes."""
        names = [f.name for f in dataclasses.fields(Quadrature)]
        return Quadrature(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def both(self, function: Callable[[Small], Small]) -> tuple[Small, Small]:
        """Σⱼ wⱼ f(θⱼ) by either rule, for every probe: two of shape (k,)."""
        gauss = (self.weights * values_of(function, self.nodes)).sum(axis=1)
        radau = (self.radau_weights * values_of(function, self.radau_nodes)).sum(axis=1)
        return gauss, radau


def _tridiagonal(diagonal: Small, beside: Small) -> Small:
    count, size = diagonal.shape
    matrices = np.zeros((count, size, size))
    places = np.arange(size)
    matrices[:, places, places] = diagonal
    matrices[:, places[1:], places[:-1]] = beside[:, : size - 1]
    matrices[:, places[:-1], places[1:]] = beside[:, : size - 1]
    return matrices


def share_above(nodes: Small, weights: Small, points: Small) -> Small:
    """What share of a rule lies above each point: interpolated, at least, at most: shape (3, g)."""
    # Nodes without weight are none: those after a space is exhausted.
    nodes, weights = nodes[weights > 0], weights[weights > 0]
    total = np.concatenate([[0.0, 0.0], np.cumsum(weights), [1.0, 1.0]])
    below = np.searchsorted(nodes, points, side="right")
    # Up to the node before, that is without the last one below, and up to the next one above.
    at_least, at_most = total[below], np.minimum(total[below + 2], 1.0)
    places = np.log(np.maximum(nodes, np.finfo(np.float64).tiny))
    middle = np.interp(np.log(points), places, total[2:-2] - weights / 2, left=0.0, right=1.0)
    return np.stack([1 - np.clip(middle, at_least, at_most), 1 - at_most, 1 - at_least])


def values_of(function: Callable[[Small], Small], nodes: Small) -> Small:
    """A caller's function of eigenvalues, checked.

    Raises:
        ValueError: If it does not return an array of the same shape.
    """
    found = np.asarray(function(nodes), dtype=np.float64)
    if found.shape != nodes.shape:
        raise ValueError(
            f"the function takes eigenvalues of shape {nodes.shape} to shape {found.shape}; "
            "return an array of the same shape"
        )
    return found
