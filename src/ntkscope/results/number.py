"""What makes an estimate a number where that is safe."""

from __future__ import annotations

import abc
import numbers
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

__all__ = ["NumberLike"]

#: What NumPy does for ``np.float64(2) * estimate``, and how that is said of plain numbers.
_OPERATORS = {
    np.add: lambda a, b: a + b,
    np.subtract: lambda a, b: a - b,
    np.multiply: lambda a, b: a * b,
    np.true_divide: lambda a, b: a / b,
}


class NumberLike(abc.ABC):
    """A value with an error, which is a number to ``format``, ``round``, comparisons and NumPy.

    Sums and products with a plain number have the error that follows. What has no error of its own
    (comparisons, ``round``, NumPy's functions, ``float``) goes by the value alone. Two estimates are
    not added or divided, since their errors may come from the same probes; ``==`` is of all fields.
    """

    value: float

    @abc.abstractmethod
    def affine(self, scale: float, shift: float, words: str) -> Self:
        """``scale * self + shift`` with its error; ``words`` say so, with ``{}`` for the quantity."""

    def __float__(self) -> float:
        return float(self.value)

    def __format__(self, spec: str) -> str:
        """The value in a format such as ``.3g``; all that is known where there is none."""
        return format(float(self), spec) if spec else str(self)

    def __round__(self, digits: SupportsIndex | None = None) -> Any:
        return round(float(self)) if digits is None else round(float(self), digits)

    # Order. Equality stays that of all fields, as hash is.

    def __lt__(self, other: Any) -> Any:
        return float(self) < float(other) if _is_comparable(other) else NotImplemented

    def __le__(self, other: Any) -> Any:
        return float(self) <= float(other) if _is_comparable(other) else NotImplemented

    def __gt__(self, other: Any) -> Any:
        return float(self) > float(other) if _is_comparable(other) else NotImplemented

    def __ge__(self, other: Any) -> Any:
        return float(self) >= float(other) if _is_comparable(other) else NotImplemented

    # Arithmetic with plain numbers.

    def __neg__(self) -> Self:
        return self.affine(-1.0, 0.0, "-{}")

    def __pos__(self) -> Self:
        return self

    def __abs__(self) -> Self:
        return self if self.value >= 0 else -self

    def __add__(self, other: Any) -> Any:
        return self.affine(1.0, float(other), f"{{}} + {other}") if _is_plain(other) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return self.affine(1.0, float(other), f"{other} + {{}}") if _is_plain(other) else NotImplemented

    def __sub__(self, other: Any) -> Any:
        return self.affine(1.0, -float(other), f"{{}} - {other}") if _is_plain(other) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return self.affine(-1.0, float(other), f"{other} - {{}}") if _is_plain(other) else NotImplemented

    def __mul__(self, other: Any) -> Any:
        return self.affine(float(other), 0.0, f"{{}} * {other}") if _is_plain(other) else NotImplemented

    def __rmul__(self, other: Any) -> Any:
        return self.affine(float(other), 0.0, f"{other} * {{}}") if _is_plain(other) else NotImplemented

    def __truediv__(self, other: Any) -> Any:
        return self.affine(1 / float(other), 0.0, f"{{}} / {other}") if _is_plain(other) else NotImplemented

    def __rtruediv__(self, other: Any) -> Any:
        if not _is_plain(other):
            return NotImplemented
        raise TypeError(
            f"{other} / estimate has no error bar that follows from the estimate's alone; divide the value, "
            f"{other} / float(estimate)"
        )

    # NumPy.

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The value, of no axes: so that ``np.mean`` takes a list of estimates."""
        if copy is False:
            raise ValueError("an estimate holds no array to share; leave copy=False out")
        return np.array(float(self), dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy's functions of the value; its arithmetic of a scalar and an estimate as for plain numbers."""
        if ufunc in _OPERATORS and method == "__call__" and not options and all(map(_is_comparable, inputs)):
            return _OPERATORS[ufunc](*(x if isinstance(x, NumberLike) else float(x) for x in inputs))
        plain = [float(x) if isinstance(x, NumberLike) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **options)


# To np.isscalar, by which TensorBoard's writer tells what it can draw.
numbers.Number.register(NumberLike)  # type: ignore[type-abstract]


def _is_plain(value: Any) -> bool:
    """Whether it is a real number without an error; two estimates are refused with a remedy."""
    if isinstance(value, NumberLike):
        raise TypeError(
            "two estimates cannot be combined, since their errors may come from the same probes; combine the "
            "values, such as float(a) / float(b), or measure the ratio itself (alignment, effective rank)"
        )
    return isinstance(value, numbers.Real)


def _is_comparable(value: Any) -> bool:
    return isinstance(value, (numbers.Real, NumberLike))
