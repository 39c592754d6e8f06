"""Estimate, Cost and Measurement: what every method returns."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.student import student_t_quantile

__all__ = ["Cost", "Estimate", "Measurement", "Measurements"]


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

    def to_dict(self) -> dict[str, float]:
        """The fields as plain numbers, for JSON."""
        return {
            "products": self.products,
            "vjps": self.vjps,
            "jvps": self.jvps,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number, how far to trust it, and what it cost.

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

    def __float__(self) -> float:
        return float(self.value)

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
        """The value with its error, rounded to what the error supports."""
        if self.stderr is None:
            return f"{self.value:.4g} ± unknown"
        if self.stderr == 0 or not math.isfinite(self.stderr):
            return f"{self.value:.7g}" + ("" if self.stderr == 0 else f" ± {self.stderr}")
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
        """Everything but the samples, as plain values for JSON."""
        low, high = self.interval()
        return {
            "quantity": self.quantity,
            "value": self.value,
            "stderr": self.stderr,
            "interval95": [low, high] if math.isfinite(low) else None,
            "method": self.method,
            "seed": self.seed,
            "converged": self.converged,
            "note": self.note,
            "cost": self.cost.to_dict(),
        }


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


@dataclass(frozen=True, eq=False)
class Measurement:
    """The metrics of one kernel, measured together.

    Attributes:
        trace: tr K.
        frobenius_norm: ‖K‖_F.
        effective_rank: (tr K)² / ‖K‖²_F.
        alignment: cos(K, K′), one for each of the other kernels.
        cost: What all of it cost together (shared work counted once).
    """

    trace: Estimate | None = None
    frobenius_norm: Estimate | None = None
    effective_rank: Estimate | None = None
    alignment: list[Estimate] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    def rows(self) -> Iterator[tuple[str, Estimate]]:
        """The metrics that were measured, as (name, estimate)."""
        for name in ("trace", "frobenius_norm", "effective_rank"):
            estimate = getattr(self, name)
            if estimate is not None:
                yield name.replace("_", " "), estimate
        for index, estimate in enumerate(self.alignment):
            suffix = f" {index}" if len(self.alignment) > 1 else ""
            yield f"alignment{suffix}", estimate

    def __str__(self) -> str:
        lines = [f"{name:<16}{estimate}" for name, estimate in self.rows()]
        return "\n".join([*lines, f"{'together':<16}{self.cost}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td>"
            f"<td><b>{html.escape(estimate.value_text())}</b></td>"
            f"<td>{html.escape(estimate.method)}</td>"
            f"<td>{html.escape(str(estimate.cost))}</td></tr>"
            for name, estimate in self.rows()
        )
        head = "<tr><th style='text-align:left'>metric</th><th>value</th><th>method</th><th>cost</th></tr>"
        return f"<table>{head}{cells}</table>"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, as plain values for JSON."""
        return {
            "trace": self.trace.to_dict() if self.trace else None,
            "frobenius_norm": self.frobenius_norm.to_dict() if self.frobenius_norm else None,
            "effective_rank": self.effective_rank.to_dict() if self.effective_rank else None,
            "alignment": [estimate.to_dict() for estimate in self.alignment],
            "cost": self.cost.to_dict(),
        }


class Measurements(list[Measurement]):
    """The metrics of several kernels, and the alignment of every pair.

    A list with one :class:`Measurement` a kernel; the ``alignment`` of each lists the other
    kernels in order.
    """

    def alignment_matrix(self) -> NDArray[np.float64]:
        """cos(K_a, K_b) of all pairs, shape (m, m), ones on the diagonal."""
        return self._matrix(1.0, lambda estimate: estimate.value)

    def alignment_stderr(self) -> NDArray[np.float64]:
        """Standard errors of :meth:`alignment_matrix`, nan where unknown."""
        return self._matrix(0.0, lambda estimate: math.nan if estimate.stderr is None else estimate.stderr)

    def _matrix(self, diagonal: float, entry: Callable[[Estimate], float]) -> NDArray[np.float64]:
        rows = [[entry(estimate) for estimate in one.alignment] for one in self]
        for index, row in enumerate(rows):
            row.insert(index, diagonal)
        return np.array(rows, dtype=np.float64).reshape(len(self), len(self))

    def __str__(self) -> str:
        return "\n\n".join(f"kernel {index}\n{one}" for index, one in enumerate(self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(f"<p>kernel {index}</p>{one._repr_html_()}" for index, one in enumerate(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, as plain values for JSON."""
        return {
            "kernels": [one.to_dict() for one in self],
            "alignment_matrix": self.alignment_matrix().tolist(),
        }
