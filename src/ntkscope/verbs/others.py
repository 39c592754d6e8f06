"""The other kernel of a metric of two."""

from __future__ import annotations

from typing import Any

__all__ = ["checked_other"]


def checked_other(kernel: Any, other: Any) -> Any:
    """Another kernel, checked against one: an NTK as it is, anything else as a matrix.

    Raises:
        ValueError: If they are not kernels of the same state on the same batch.
    """
    shape = tuple(getattr(other, "shape", ()))
    if shape != kernel.shape:
        raise ValueError(
            f"the other kernel has shape {shape}, expected {kernel.shape}; kernels are compared on the "
            "same state: use the same inputs and outputs for both"
        )
    if getattr(other, "engine", None) is None:
        return kernel.engine.matrix(other)
    if other.output_shape != kernel.output_shape:
        raise ValueError(
            f"the other kernel's state has shape {other.output_shape}, expected {kernel.output_shape}; "
            "kernels are compared on the same state: use the same inputs and outputs for both"
        )
    if other.dtype != kernel.dtype or other.device != kernel.device:
        raise ValueError(
            f"the kernels are {kernel.dtype} on {kernel.device} and {other.dtype} on {other.device}; "
            "bring both models to one dtype and device"
        )
    different = kernel.engine.other_inputs(other.engine)
    if different:
        raise ValueError(
            f"the kernels are of different inputs ({different}); use the same batch for both "
            "(estimators.alignment compares kernels whatever they are of)"
        )
    return other
