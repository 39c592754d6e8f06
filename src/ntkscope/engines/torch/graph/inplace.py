"""Operations that write in place, as the same operation with a result of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntkscope.engines.torch.compat import name_of_overload, schema_of

__all__ = ["functional_overload", "writes_all_of_it"]


def functional_overload(func: Any) -> Any | None:
    """The overload that computes what an operation writes into its first argument.

    Overloads are told apart by the types of their arguments: ``pow_.Scalar`` takes a tensor and a
    number, as ``pow.Tensor_Scalar`` does, while ``pow.Scalar`` raises a number to a tensor.

    Args:
        func: The overload that writes.

    Returns:
        ``None`` if there is none.
    """
    schema = schema_of(func)
    namespace, name = schema.name.split("::")
    written = [argument for argument in schema.arguments if argument.is_write]
    if len(written) != 1 or (schema.arguments[0] is not written[0] and not schema.arguments[0].is_write):
        return None
    base = _functional_name(name)
    packet = getattr(getattr(torch.ops, namespace), base, None) if base else None
    if packet is None:
        return None
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    fitting = [one for one in overloads if _types(one) == _types(func) and _is_pure(one)]
    by_name = [one for one in fitting if name_of_overload(one) == name_of_overload(func)]
    return next(iter(by_name or fitting), None)


def _functional_name(name: str) -> str:
    """``add`` of ``add_``, ``__or__`` of ``__ior__``; empty for what does not write in place by name."""
    if name.startswith("__"):
        return f"__{name[3:]}" if name.startswith("__i") else ""
    return name[:-1] if name.endswith("_") else ""


def _types(func: Any) -> list[str]:
    return [str(argument.type) for argument in schema_of(func).arguments]


def _is_pure(func: Any) -> bool:
    returns = schema_of(func).returns
    return not schema_of(func).is_mutable and len(returns) == 1 and str(returns[0].type) == "Tensor"


def writes_all_of_it(written: Tensor, expected: Any) -> bool:
    """Whether what an operation wrote is what the other form computes, in the dtype of what is written.

    Args:
        written: After the operation.
        expected: The result of the form that does not write.
    """
    if not isinstance(expected, Tensor) or expected.shape != written.shape:
        return False
    cast = expected.to(written.dtype)
    return bool(((cast == written) | ((cast != cast) & (written != written))).all())
