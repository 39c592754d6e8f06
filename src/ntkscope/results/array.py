"""Arrays with an error bar for every entry."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ntkscope.results.estimate import DOUBLE_EPSILON, Cost
from ntkscope.results.plain import Fields

__all__ = ["Array", "ArrayEstimate"]

Array = NDArray[np.float64]
Own = TypeVar("Own", bound="ArrayEstimate")


@dataclass(frozen=True, eq=False, repr=False)
class ArrayEstimate:
    """Numbers of one kind, how far to trust each, and what all of them cost.

    Attributes:
        values: The estimates.
        stderr: Their standard errors, of the same shape: 0 only for exact results, ``None`` where they
            cannot be known.
        quantity: What they are, such as ``"diagonal"``.
        method: How they were found.
        degrees_of_freedom: For Student's t in :meth:`interval`, of the same shape; infinite if ``None``.
        cost: Products and seconds that were really spent.
        seed: The seed of the probes; ``None`` for exact results.
        note: What a reader should know besides.
        converged: Whether the tolerance was met; ``None`` if none was requested.
        epsilon: Relative rounding of the products.
    """

    values: Array
    stderr: Array | None
    quantity: str = "values"
    method: str = "exact"
    degrees_of_freedom: Array | None = None
    cost: Cost = field(default_factory=Cost)
    seed: int | None = None
    note: str = ""
    converged: bool | None = None
    epsilon: float = DOUBLE_EPSILON

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of :attr:`values`."""
        return self.values.shape

    @property
    def is_exact(self) -> bool:
        """Whether no probe was drawn."""
        return self.stderr is not None and not bool(self.stderr.any())

    @property
    def relative_stderr(self) -> float | None:
        """√Σ stderr² / √Σ values²: the error of the whole; ``None`` where it is not known."""
        size = float(np.linalg.norm(self.values))
        if self.stderr is None or (size == 0 and not self.is_exact):
            return None
        return 0.0 if size == 0 else float(np.linalg.norm(self.stderr)) / size

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Confidence interval of every entry, by Student's t.

        Args:
            level: Probability of covering the truth, between 0 and 1.

        Returns:
            (low, high), each of the shape of :attr:`values`; infinite where the error is not known.

        Raises:
            ValueError: If ``level`` is not strictly between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, found {level}; use 0.95 for 95%")
        if self.stderr is None:
            wide = np.full(self.shape, math.inf)
            return -wide, wide
        from scipy import special

        freedom = np.inf if self.degrees_of_freedom is None else self.degrees_of_freedom
        tail = (1 + level) / 2
        quantile = np.where(np.isinf(freedom), special.ndtri(tail), special.stdtrit(freedom, tail))
        half = self.stderr * quantile
        return self.values - half, self.values + half

    def _error_text(self) -> str:
        if self.is_exact:
            return "exact"
        error = self.relative_stderr
        return "± unknown" if error is None else f"± {100 * error:.2g}%"

    def _details(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.method}, {self.cost}{note}"

    def __repr__(self) -> str:
        size = "×".join(map(str, self.shape)) or "1"
        return f"{self.quantity.replace('_', ' ')} {size} {self._error_text()} ({self._details()})"

    def _repr_html_(self) -> str:
        size = "×".join(map(str, self.shape)) or "1"
        name = html.escape(f"{self.quantity.replace('_', ' ')} {size}")
        details = html.escape(self._details())
        return f"<span>{name} <b>{html.escape(self._error_text())}</b> <small>({details})</small></span>"

    def to_dict(self) -> dict[str, Any]:
        """All fields, for strict JSON; what is not finite is ``None``. :meth:`from_dict` reads it back."""
        return {
            "quantity": self.quantity,
            "method": self.method,
            "shape": list(self.shape),
            "values": _plain(self.values),
            "stderr": None if self.stderr is None else _plain(self.stderr),
            "degrees_of_freedom": None
            if self.degrees_of_freedom is None
            else _plain(self.degrees_of_freedom),
            "cost": self.cost.to_dict(),
            "seed": None if self.seed is None else int(self.seed),
            "note": self.note,
            "converged": None if self.converged is None else bool(self.converged),
            "epsilon": float(self.epsilon),
        }

    @classmethod
    def from_dict(cls: type[Own], data: Any) -> Own:
        """What :meth:`to_dict` wrote.

        Raises:
            ValueError: If a field is missing or wrong.
        """
        fields = Fields(data, "an array of estimates")
        shape = tuple(fields.sequence("shape"))

        def array_or_none(name: str, missing: float) -> Array | None:
            return None if fields.get(name) is None else _array(fields.sequence(name), shape, missing)

        return cls(
            values=_array(fields.sequence("values"), shape, math.nan),
            stderr=array_or_none("stderr", math.nan),
            quantity=fields.text("quantity"),
            method=fields.text("method"),
            degrees_of_freedom=array_or_none("degrees_of_freedom", math.inf),
            cost=Cost.from_dict(fields.get("cost")),
            seed=fields.whole_or_none("seed"),
            note=fields.text("note"),
            converged=fields.flag_or_none("converged"),
            epsilon=fields.number_or("epsilon", DOUBLE_EPSILON),
            **cls._own_fields(fields),
        )

    @classmethod
    def _own_fields(cls, fields: Fields) -> dict[str, Any]:
        return {}


def _plain(values: Array) -> list[float | None]:
    return [float(x) if math.isfinite(x) else None for x in values.reshape(-1)]


def _array(values: list[Any], shape: tuple[int, ...], missing: float) -> Array:
    try:
        flat = np.array([missing if x is None else x for x in values], dtype=np.float64)
        return flat.reshape(shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an array of {len(values)} entries has the shape {shape}; {error}") from error
