"""A number, its error bar and its cost."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.results.number import NumberLike
from ntkscope.results.plain import Fields, plain_numbers

__all__ = ["Cost", "Estimate", "student_t_quantile"]


#: Relative rounding of float64.
DOUBLE_EPSILON = 2.0**-52


@functools.lru_cache(maxsize=4096)
def student_t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: Between 0 and 1.
        degrees_of_freedom: ν > 0, or ``math.inf`` for the normal distribution.

    >>> round(student_t_quantile(0.975, 4), 4)
    2.7764
    """
    # It takes a tenth of a second to load, which only error bars need.
    from scipy import special

    if math.isinf(degrees_of_freedom):
        return float(special.ndtri(probability))
    return float(special.stdtrit(degrees_of_freedom, probability))


@dataclass(frozen=True)
class Cost:
    """What a computation really ran.

    Attributes:
        products: Applications of the operator that was estimated (for a kernel, NTK products).
        vjps: Reverse-mode products Jᵀz.
        jvps: Forward-mode products Ju.
        seconds: Wall-clock time.
    """

    products: int = 0
    vjps: int = 0
    jvps: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.products + other.products,
            self.vjps + other.vjps,
            self.jvps + other.jvps,
            self.seconds + other.seconds,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.products - other.products,
            self.vjps - other.vjps,
            self.jvps - other.jvps,
            self.seconds - other.seconds,
        )

    def __str__(self) -> str:
        counts = [
            f"{count:,} {name}{'' if count == 1 else 's'}"
            for count, name in (
                (self.products, "product"),
                (self.vjps if not self.products else 0, "VJP"),
                (self.jvps if not self.products else 0, "JVP"),
            )
            if count
        ]
        return ", ".join([*counts, f"{self.seconds:.2g} s"])

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers, for strict JSON; :meth:`from_dict` reads them back."""
        return {
            "products": int(self.products),
            "vjps": int(self.vjps),
            "jvps": int(self.jvps),
            **plain_numbers(seconds=self.seconds),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Cost:
        """The cost that :meth:`to_dict` wrote.

        Raises:
            ValueError: If a field is missing or wrong.

        >>> Cost.from_dict({"products": 3, "vjps": 3, "jvps": 3, "seconds": 0.5})
        Cost(products=3, vjps=3, jvps=3, seconds=0.5)
        """
        fields = Fields(data, "a cost")
        return cls(
            fields.whole("products"), fields.whole("vjps"), fields.whole("jvps"), fields.number("seconds")
        )


@dataclass(frozen=True, eq=False)
class Estimate(NumberLike):
    """A number, how far to trust it, and what it cost.

    ``format``, ``round``, comparisons, ``float`` and NumPy's functions take its value. Sums and
    products with a plain number are estimates, with the error that follows; two estimates are never
    combined, since their errors may come from the same probes. Two estimates are equal if all their
    fields but the samples are; nan equals nan; none equals a plain number.

    >>> e = Estimate(200.0, 4.0)
    >>> f"{e:.1f}", round(e), e > 199, (e / 100).value_text()
    ('200.0', 200, True, '2.000 ± 0.040')

    Attributes:
        value: The estimate.
        stderr: Its standard error: 0 only for exact results, ``None`` when it cannot be known.
        method: The method that was used, such as ``"hutch++"``.
        quantity: What was estimated, such as ``"trace"``.
        samples: The values, one a probe, from which ``stderr`` was computed, where there are such.
        degrees_of_freedom: For Student's t in :meth:`interval`.
        cost: Products and seconds that were really spent.
        seed: The seed of the probes; ``None`` for exact results.
        note: What a reader should know besides, such as why a run ended early.
        converged: Whether the requested tolerance was met; ``None`` if none was requested.
        epsilon: Relative rounding of the products that it was made of, that of their dtype; an exact
            value is printed with no more digits than that leaves.
        bounds: (low, high) between which the truth lies for certain, of positive semidefinite kernels:
            what a sketch captured and the exact trace say so (``method="sketch"``,
            ``trace_method="exact"``); ``None`` otherwise.
    """

    value: float
    stderr: float | None = None
    method: str = "exact"
    quantity: str = "value"
    samples: NDArray[np.float64] | None = field(default=None, repr=False)
    degrees_of_freedom: float = math.inf
    cost: Cost = field(default_factory=Cost)
    seed: int | None = None
    note: str = ""
    converged: bool | None = None
    epsilon: float = DOUBLE_EPSILON
    bounds: tuple[float, float] | None = None

    def affine(self, scale: float, shift: float, words: str) -> Estimate:
        """``scale * self + shift`` with the error that follows; also what ``2 * estimate - 1`` gives.

        Args:
            scale: A plain number.
            shift: A plain number.
            words: What that is, with ``{}`` for the quantity.
        """
        value = scale * self.value + shift
        # The rounding stays as large as it was, which is more of a value that is smaller now.
        rounding = self.epsilon * abs(scale * self.value)
        relative = rounding / abs(value) if value else (1.0 if rounding else 0.0)
        inner = f"({self.quantity})" if " " in self.quantity else self.quantity
        return dataclasses.replace(
            self,
            value=value,
            stderr=None if self.stderr is None else abs(scale) * self.stderr,
            samples=None if self.samples is None else scale * self.samples + shift,
            quantity=words.format(inner),
            epsilon=min(max(relative, DOUBLE_EPSILON), 1.0),
            converged=None,
        )

    @property
    def relative_stderr(self) -> float | None:
        """``stderr / |value|``, or ``None`` when the error is not known or the value is 0."""
        if self.stderr is None or (self.value == 0 and self.stderr != 0):
            return None
        return 0.0 if self.stderr == 0 else self.stderr / abs(self.value)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval, by Student's t where the probes were few.

        Args:
            level: Probability of covering the truth, between 0 and 1.

        Returns:
            (low, high); (-inf, inf) when the error is not known.

        Raises:
            ValueError: If ``level`` is not strictly between 0 and 1.

        >>> low, high = Estimate(10.0, stderr=1.0).interval(0.95)
        >>> round(low, 2), round(high, 2)
        (8.04, 11.96)
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, found {level}; use 0.95 for 95%")
        if self.stderr is None:
            return (-math.inf, math.inf)
        if self.stderr == 0:
            return (self.value, self.value)
        half = self.stderr * student_t_quantile((1 + level) / 2, self.degrees_of_freedom)
        return (self.value - half, self.value + half)

    def value_text(self) -> str:
        """The value with its error, rounded to what the error supports, or to what the dtype does.

        >>> Estimate(2314.2322, 0.0).value_text(), Estimate(2314.2322, 0.0, epsilon=2**-7).value_text()
        ('2314.232', '2.3e+03')
        """
        if self.stderr is None:
            return f"{self.value:.4g} ± unknown"
        if self.stderr == 0 or not math.isfinite(self.stderr):
            error = "" if self.stderr == 0 else f" ± {self.stderr}"
            return f"{self.value:.{_digits(self.epsilon)}g}{error}"
        return _rounded(self.value, self.stderr)

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.value_text()} ({self.method}, {self.cost}{note})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        value = html.escape(self.value_text())
        details = html.escape(f"{self.method}, {self.cost}" + (f"; {self.note}" if self.note else ""))
        name = html.escape(self.quantity.replace("_", " "))
        return f"<span>{name} <b>{value}</b> <small>({details})</small></span>"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, for strict JSON; :meth:`from_dict` reads it back.

        What is not finite is ``None`` and named under ``"not_finite"``; infinite degrees of freedom
        are ``None`` alone.
        """
        low, high = self.interval()
        known = math.isfinite(low) and math.isfinite(high)
        return {**self._fields(), "interval95": [float(low), float(high)] if known else None}

    def _fields(self) -> dict[str, Any]:
        """What makes two estimates equal."""
        freedom = None if self.degrees_of_freedom == math.inf else self.degrees_of_freedom
        return {
            "quantity": self.quantity,
            "method": self.method,
            "seed": None if self.seed is None else int(self.seed),
            "converged": None if self.converged is None else bool(self.converged),
            "note": self.note,
            "cost": self.cost.to_dict(),
            "bounds": None if self.bounds is None else [float(end) for end in self.bounds],
            **plain_numbers(
                value=self.value, stderr=self.stderr, degrees_of_freedom=freedom, epsilon=self.epsilon
            ),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Estimate:
        """The estimate that :meth:`to_dict` wrote, without its samples.

        Raises:
            ValueError: If a field is missing or wrong.

        >>> estimate = Estimate(2.0, 0.5, "hutch++", "trace", seed=0)
        >>> Estimate.from_dict(estimate.to_dict()) == estimate
        True
        """
        fields = Fields(data, "an estimate")
        freedom = fields.number_or_none("degrees_of_freedom")
        return cls(
            value=fields.number("value"),
            stderr=fields.number_or_none("stderr"),
            method=fields.text("method"),
            quantity=fields.text("quantity"),
            degrees_of_freedom=math.inf if freedom is None else freedom,
            cost=Cost.from_dict(fields.get("cost")),
            seed=fields.whole_or_none("seed"),
            note=fields.text("note"),
            converged=fields.flag_or_none("converged"),
            epsilon=fields.number_or("epsilon", DOUBLE_EPSILON),
            bounds=fields.pair_or_none("bounds"),
        )

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, Estimate) else NotImplemented

    def __hash__(self) -> int:
        # Of what cannot be nan, which equals itself here.
        return hash((self.quantity, self.method, self.seed, self.note))


def _digits(epsilon: float) -> int:
    """How many digits are known with this relative rounding: 7 at most, 3 of float16, 2 of bfloat16."""
    return max(1, min(7, round(-math.log10(epsilon)))) if epsilon > 0 else 7


def _rounded(value: float, error: float) -> str:
    """``2314 ± 12``: two digits of the error, the value to the same place."""
    place = math.floor(math.log10(error)) - 1
    largest = math.floor(math.log10(max(abs(value), error)))
    if largest >= 7 or largest < -4:
        digits = max(largest - place, 0)
        scale = 10.0**largest
        return f"({value / scale:.{digits}f} ± {error / scale:.{digits}f})e{largest:+03d}"
    decimals = max(-place, 0)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
