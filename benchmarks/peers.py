"""The same work by other libraries, where they are installed (``pip install ntkscope[peers]``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.models import Case


def nngeometry_trace(case: Case) -> Callable[[], float] | None:
    """Exact trace by layer hooks; for feed-forward models of linear and convolution layers."""
    try:
        from nngeometry.backend import TorchHooksJacobianBackend
        from nngeometry.layercollection import LayerCollection
    except ImportError:
        return None
    collection = LayerCollection.from_model(case.model)
    backend = TorchHooksJacobianBackend(model=case.model, function=case.model, layer_collection=collection)
    batch = len(case.inputs)

    def trace() -> float:
        loader = DataLoader(TensorDataset(case.inputs.clone()), batch_size=batch)
        return float(backend.implicit_trace(loader)) * batch

    return trace


def curvlinops_trace(case: Case, products: int, method: str) -> Callable[[], float] | None:
    """``hutchpp_trace`` or ``xtrace`` of J Jᵀ."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import curvlinops
    except ImportError:
        return None
    data = [(case.inputs, torch.zeros(len(case.inputs)))]
    jacobian = curvlinops.JacobianLinearOperator(
        case.model, list(case.model.parameters()), data, check_deterministic=False
    )
    kernel = jacobian @ jacobian.adjoint()
    function = {"hutch++": curvlinops.hutchpp_trace, "xtrace": curvlinops.xtrace}[method]
    return lambda: float(function(kernel, products))
