"""Products that leave the range of their dtype are errors, not numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.errors import argument, said

__all__ = ["check_not_vanished", "check_squares", "checked"]


def _remedy() -> str:
    exact, wider = (
        argument("method", "exact", "per-sample", "gram"),
        said("model.double()", "--dtype float64"),
    )
    return (
        f"use what adds up in float64 ({exact}), or a model of another scale or of higher precision ({wider})"
    )


def checked(products: Tensor, given: Tensor) -> Tensor:
    """The products, if they are finite.

    Args:
        products: Of the kernel or its Jacobian.
        given: The vectors that were multiplied.

    Raises:
        ValueError: If a product is not finite.
    """
    # Twenty times as quick as a look at every entry, which only a sum that overflows needs.
    if bool(products.sum().isfinite()) or bool(products.isfinite().all()):
        return products
    if not bool(given.isfinite().all()):
        raise ValueError("the vectors have entries that are not finite; look for nan and inf in them")
    raise ValueError(
        f"products with the kernel or its Jacobian are not finite: they leave the range of "
        f"{_range(given.dtype)}, or a derivative of the model is NaN in some direction; {_remedy()}"
    )


def check_not_vanished(products: Tensor, pulled: Iterable[Tensor]) -> None:
    """Refuses Kz that has lost half of its digits below the range of its dtype, though Jᵀz is not zero.

    Args:
        products: Kz, for a block of vectors.
        pulled: Jᵀz, in parts.

    Raises:
        ValueError: If they have.
    """
    limits = torch.finfo(products.dtype)
    if products.numel() == 0 or float(products.abs().max()) >= limits.tiny * limits.eps**0.5:
        return
    if any(bool(part.any()) for part in pulled):
        raise ValueError(
            f"products with the kernel vanish: they leave the range of {_range(products.dtype)}; {_remedy()}"
        )


def check_squares(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared lengths of finite products, if they are finite.

    Raises:
        ValueError: If they leave the range of float64.
    """
    if np.isfinite(squares).all():
        return squares
    raise ValueError(
        f"the kernel's entries leave the range of {_range(torch.float64)}; scale the model's outputs "
        f"({said('outputs=lambda y: y * 1e-100', 'in the factory')}), and the trace with the square of that"
    )


def _range(dtype: torch.dtype) -> str:
    limits = torch.finfo(dtype)
    return f"{str(dtype).removeprefix('torch.')} ({limits.tiny:.0e} to {limits.max:.0e})"
