"""The trace estimators of arXiv 2511.10796 as its code runs them: the yardstick.

This library's own ``hutch++``, ``rhutch`` and ``fhutch`` spend their products otherwise and carry error
bars. To compare with the paper fairly, these spend them as the paper does and compute nothing else.
A probe is a row here; blocks of them are drawn and multiplied in turn, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ntkscope.operators.probes import random_signs

__all__ = ["Product", "hutch_plus_plus", "one_sided"]

#: A block of rows to a block of rows.
Product = Callable[[Tensor], Tensor]

# Rows at a time: 512 rows of a state of 48,000 are 100 MB.
_BLOCK = 512


def hutch_plus_plus(apply: Product, like: Tensor, size: int, probes: int, seed: int) -> float:
    """Tr A by Hutch++: m/6 probes in the sketch, and half of the others in the residual.

    Args:
        apply: Multiplies rows by A.
        like: Its dtype and device are those of the probes.
        size: A is size × size.
        probes: m; about 0.75 m products with A run.
        seed: Of the probes.

    Raises:
        ValueError: For fewer than six probes.
    """
    _check(probes)
    sketched = probes // 6
    residual = (probes - sketched) // 2
    sketched += (probes - sketched) % 2
    basis = _orthonormal(_applied(apply, _signs(like, size, sketched, seed, 0)))
    captured = sum(_inner(rows, apply(rows)) for rows in basis.split(_BLOCK))
    rest = 0.0
    for rows in _blocks(like, size, residual, seed, 1):
        outside = _project_out(rows, basis)
        rest += _inner(outside, apply(outside))
    return captured + rest / residual


def one_sided(squared_norms: Product, like: Tensor, size: int, probes: int, seed: int) -> float:
    """Tr MᵀM = E‖Mz‖²: RHutch with M = Jᵀ, FHutch with M = J.

    m/6 of the probes are random signs made orthonormal, the others are projected off them.

    Args:
        squared_norms: ‖Mz‖² for every row z, in float64.
        like: Its dtype and device are those of the probes.
        size: Length of z.
        probes: m; as many products run.
        seed: Of the probes.

    Raises:
        ValueError: For fewer than six probes.
    """
    _check(probes)
    sketched = min(probes // 6, size)
    basis = _orthonormal(_signs(like, size, sketched, seed, 0))
    captured = sum(float(squared_norms(rows).sum()) for rows in basis.split(_BLOCK))
    rest = sum(
        float(squared_norms(_project_out(rows, basis)).sum())
        for rows in _blocks(like, size, probes - sketched, seed, 1)
    )
    return captured + rest / (probes - sketched)


def _check(probes: int) -> None:
    if probes < 6:
        raise ValueError(f"the paper's methods take six probes or more, found {probes}")


def _signs(like: Tensor, size: int, count: int, seed: int, stream: int, start: int = 0) -> Tensor:
    signs = random_signs(size, start, start + count, seed=seed, stream=stream).T
    return torch.from_numpy(signs).to(like.device, like.dtype)


def _blocks(like: Tensor, size: int, count: int, seed: int, stream: int) -> Iterator[Tensor]:
    for start in range(0, count, _BLOCK):
        yield _signs(like, size, min(_BLOCK, count - start), seed, stream, start)


def _applied(apply: Product, rows: Tensor) -> Tensor:
    return torch.cat([apply(block) for block in rows.split(_BLOCK)])


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T, mode="reduced")[0].T.contiguous()


def _project_out(rows: Tensor, basis: Tensor) -> Tensor:
    return rows - (rows @ basis.T) @ basis


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))
