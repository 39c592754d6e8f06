"""Gradients of a matrix pulled back through what made it, as factors where they stay factors.

W is a tensor whose entries are those of an M × N matrix, in order; N is what follows its first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ntkscope.engines.torch.gradients.base import Direct, Factor
from ntkscope.engines.torch.gradients.factors import add_uses
from ntkscope.engines.torch.gradients.outer import Outer
from ntkscope.engines.torch.gradients.sides import Features
from ntkscope.engines.torch.gradients.weighted import MOST_POSITIONS, Term, Weighted

__all__ = [
    "outer_with_vector",
    "reduced",
    "scaled",
    "spread",
    "through_product",
    "total",
    "turned",
]


def total(factors: Sequence[Factor]) -> Factor:
    """The sum of gradients of one matrix."""
    if len(factors) == 1:
        return factors[0]
    outers = [factor for factor in factors if isinstance(factor, Outer)]
    if len(outers) == len(factors) and len({factor.layout for factor in outers}) == 1:
        return add_uses(outers)
    terms = [_terms(factor) for factor in factors]
    known = [term for found in terms for term in found or ()]
    shapes = {(term.rows.shape[3], term.columns.shape[3]) for term in known}
    if all(found is not None for found in terms) and len(shapes) == 1:
        probes, batch = _counts(factors[0])
        return Weighted.of(known, probes, batch)
    return add_uses(factors)


def scaled(factor: Factor, slope: Tensor) -> Factor | None:
    """The gradient times a tensor like the parameter, entry by entry; ``None`` if that is zero."""
    first = slope.flatten()[0]
    if bool((slope == first).all()):
        if not bool(first):
            return None
        return factor if float(first) == 1 else _times(factor, first)
    if isinstance(factor, Outer):
        return _scaled_outer(factor, slope)
    if isinstance(factor, Weighted):
        matrix = slope.reshape(factor.shape)
        return replace(factor, terms=tuple(term.times(matrix) for term in factor.terms))
    return Direct(factor.rows() * slope.flatten())


def _times(factor: Factor, number: Tensor) -> Factor:
    if isinstance(factor, Outer):
        return replace(factor, probe_side=factor.probe_side * number)
    if isinstance(factor, Weighted):
        return replace(factor, terms=tuple(replace(t, rows=t.rows * number) for t in factor.terms))
    return Direct(factor.rows() * number)


def _scaled_outer(factor: Outer, slope: Tensor) -> Factor:
    if factor.order is not None:
        return Direct(factor.rows() * slope.flatten())
    groups, outputs, width, transposed, _ = factor.layout
    by_output = slope.reshape(width, outputs).mT if transposed else slope.reshape(groups * outputs, width)
    if bool((by_output == by_output[:, :1]).all()):
        return replace(factor, probe_side=factor.probe_side * by_output[:, 0].reshape(groups, 1, outputs))
    if bool((by_output == by_output[:1]).all()) and isinstance(factor.sample_side, Features):
        return replace(factor, sample_side=Features(factor.sample_side.values * by_output[0]))
    terms = _terms(factor)
    if terms is None:
        return Direct(factor.rows() * slope.flatten())
    matrix = by_output.mT if transposed else by_output
    return Weighted.of([term.times(matrix) for term in terms], *_counts(factor))


def reduced(factor: Factor, slope: Tensor, shape: torch.Size) -> Factor | None:
    """The gradient times a tensor, summed to a shape that broadcasts to that of the parameter."""
    if not bool(slope.any()):
        return None
    probes, batch = _counts(factor)
    terms = _terms(factor)
    index = torch.arange(shape.numel(), device=slope.device).reshape(shape).expand(slope.shape)
    if terms is not None:
        matrix = (terms[0].rows.shape[3], terms[0].columns.shape[3])
        place, weights = index.reshape(matrix), slope.reshape(matrix)
        for summed, along in ((terms, weights), ([term.turned() for term in terms], weights.mT)):
            size = along.shape[0]
            own = place if summed is terms else place.mT
            counted = torch.arange(size, device=slope.device).unsqueeze(1)
            if shape.numel() == 1 or (shape.numel() == size and bool((own == counted).all())):
                rows = sum((_row_sums(term.times(along)) for term in summed), torch.zeros(()))
                rows = rows.expand(probes, batch, size)
                return Direct(rows.sum(2, keepdim=True) if shape.numel() == 1 else rows)
    values = factor.rows() * slope.flatten()
    found = values.new_zeros(probes, batch, shape.numel())
    return Direct(found.index_add_(2, index.flatten(), values))


def _row_sums(term: Term) -> Tensor:
    """Σ_j of a term, shape (k or 1, B or 1, M)."""
    assert term.weights is not None
    term = term.to(term.dtype)
    return ((term.columns @ term.weights.mT) * term.rows).sum(2)  # type: ignore[union-attr]


def turned(factor: Factor, shape: tuple[int, int]) -> Factor | None:
    """The gradient of a matrix as that of its transpose, where it need not be formed.

    Args:
        factor: Of the matrix.
        shape: The matrix's.
    """
    if isinstance(factor, Outer) and _matrix(factor) == shape:
        return replace(factor, transposed=not factor.transposed)
    if isinstance(factor, Weighted) and factor.shape == shape:
        return replace(factor, terms=tuple(term.turned() for term in factor.terms))
    return None


def through_product(factor: Factor, left: Tensor, right: Tensor) -> tuple[Factor, Factor] | None:
    """The gradients of A and B from that of A B, where it need not be formed: G Bᵀ and AᵀG."""
    shape = (left.shape[0], right.shape[1])
    if not isinstance(factor, Outer) or _matrix(factor) != shape:
        return None
    delta, features = factor.probe_side, factor.sample_side.dense(factor.dtype)
    if factor.transposed:
        of_left = replace(factor, probe_side=delta @ right.mT)
        return of_left, replace(factor, sample_side=Features(features @ left))
    of_left = replace(factor, sample_side=Features(features @ right.mT))
    return of_left, replace(factor, probe_side=delta @ left)


def outer_with_vector(factor: Factor, vector: Tensor) -> Outer:
    """The gradient of A from that of A v."""
    values = factor.rows()
    features = vector.expand(values.shape[1], 1, 1, -1)
    return Outer(values[:, :, None, None, :], Features(features))


def spread(factor: Factor, gradient: Tensor, *, columns: bool = False) -> Weighted:
    """The gradient of W from that of f(W), whose entries depend on one row of W each, or on all of it.

    Args:
        factor: Of f(W), with M entries or one.
        gradient: ∂f/∂W of each entry, in the shape of W.
        columns: Whether they depend on one column each.
    """
    matrix = gradient.reshape(gradient.shape[0], -1)
    matrix = matrix.mT if columns else matrix
    values = factor.rows().unsqueeze(2)
    k, batch = values.shape[:2]
    term = Term(values.expand(k, batch, 1, len(matrix)), values.new_ones(1, 1, 1, matrix.shape[1]), matrix)
    return Weighted((term.turned() if columns else term,), k, batch)


def _counts(factor: Factor) -> tuple[int, int]:
    """(k, B)."""
    if isinstance(factor, Weighted):
        return factor.probes, factor.batch
    side = factor.probe_side if isinstance(factor, Outer) else factor.rows()
    return side.shape[0], side.shape[1]


def _matrix(factor: Outer) -> tuple[int, int] | None:
    """The shape of a parameter that is one matrix, with its axes as they are or transposed."""
    groups, outputs, width, transposed, order = factor.layout
    if groups != 1 or order is not None:
        return None
    return (width, outputs) if transposed else (outputs, width)


def _terms(factor: Factor) -> list[Term] | None:
    """A factor as terms, if it is one of few positions that need not be formed."""
    if isinstance(factor, Weighted):
        return list(factor.terms)
    if not isinstance(factor, Outer) or _matrix(factor) is None:
        return None
    if factor.probe_side.shape[3] > MOST_POSITIONS:
        return None
    delta, features = factor.probe_side[:, :, 0], factor.sample_side.dense(factor.dtype)[:, 0].unsqueeze(0)
    return [Term(features, delta) if factor.transposed else Term(delta, features)]
