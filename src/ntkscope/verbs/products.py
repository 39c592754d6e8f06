"""Numbers of several kernels at once that are no metric of two."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, Unpack

from ntkscope.results import Estimate
from ntkscope.settings import Limits, Options, options_of
from ntkscope.verbs.others import checked_other
from ntkscope.ways import chains

__all__ = ["trace_product"]

#: How the trace of a product is found.
ChainMethod: TypeAlias = Literal["auto", "exact", "hutch++"]


def trace_product(
    *kernels: Any,
    method: ChainMethod = "auto",
    products: int | None = None,
    seed: int | None = None,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Estimate:
    """Tr(K₁K₂…K_j) of any number of kernels on one state, in this order.

    It does not change when the kernels are rotated or all turned round. For powers of one kernel
    :meth:`NTK.moments` is far better.

    Args:
        *kernels: NTKs on states of one shape, or symmetric matrices of shape (n, n).
        method: ``"hutch++"``: Hutch++ on the product (arXiv 2010.09649), j NTK products a probe,
            unbiased. ``"exact"``: from dense kernels. ``"auto"``: exact where that costs no more.
        products: NTK products to spend, all kernels together, in place of a tolerance.
        seed: Of the probes; 0 if not given.
        options: All of how far to go as one :class:`Options`.
        **limits: Its fields by keyword, as in :meth:`NTK.trace`.

    Raises:
        ValueError: If there is no kernel, for kernels of different states, and for an unknown method.

    >>> import numpy as np
    >>> trace_product(np.diag([1.0, 2.0]), np.diag([3.0, 4.0]), np.eye(2)).value
    11.0
    """
    # A model's kernel says which others it can be multiplied with, and brings matrices to its device.
    model = next((kernel for kernel in kernels if hasattr(kernel, "engine")), None)
    checked = list(kernels) if model is None else [checked_other(model, kernel) for kernel in kernels]
    chosen = options_of(options, products, seed, limits)
    return chains.trace_product(checked, method, chosen)
