"""Traces and inner products of kernels, and products of their powers with an error bar.

An estimator gives a :class:`MomentSource`: tr K_a and ⟨K_a, K_b⟩ of every kernel. Norm,
effective rank and alignment are monomials of these (see :mod:`ntkscope.metrics`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ntkscope.runs.shared import (
    MomentFactor,
    certain_error,
    ratio_freedom,
    shared_error,
    with_shared_probes,
)
from ntkscope.runs.statistics import Summary, power_product

__all__ = [
    "LeftOut",
    "Moment",
    "MomentSource",
    "Moments",
    "Monomial",
]

Small = NDArray[np.float64]

#: ``(a,)`` is tr K_a, ``(a, b)`` is ⟨K_a, K_b⟩ = tr(K_a K_b), by the kernels' numbers, the lower first.
Moment: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Monomial:
    """Π vⱼ^pⱼ of moments, with its error.

    Attributes:
        summary: Value, standard error and degrees of freedom.
        samples: The influence of every probe, where there is such.
        note: What a reader should know.
        source: Where a part of it came from, if not from the method that was asked for.
    """

    summary: Summary
    samples: Small | None = field(default=None, repr=False)
    note: str = ""
    source: str = ""


class MomentSource(Protocol):
    """The moments of some kernels, however they were found."""

    def value(self, moment: Moment) -> float:
        """A moment by itself."""
        ...

    def monomial(self, powers: Mapping[Moment, float]) -> Monomial:
        """Π vⱼ^pⱼ; every moment with a negative or a broken power is positive."""
        ...


#: A standard error below this many rounding errors of the value is not believed.
ROUNDING = 4.0


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The moments as they would be without one probe, for some or all of the k probes.

    Attributes:
        probes: The g probes that were left out, one at a time.
        traces: Samples of shape (g, k-1, c), one row for every probe that was left out.
        inner: Samples of shape (g, k-1, c, c).
    """

    probes: list[int]
    traces: Small
    inner: Small


@dataclass(frozen=True, eq=False)
class Moments:
    """tr K_a and ⟨K_a, K_b⟩ of c kernels, from k paired samples.

    Attributes:
        traces: Shape (c,).
        inner: ⟨K_a, K_b⟩ = tr(K_a K_b), shape (c, c).
        trace_samples: Shape (k, c): samples, or influence values, with mean ``traces``;
            ``None`` for exact numbers.
        inner_samples: Shape (k, c, c), with mean ``inner``.
        trace_freedom: Degrees of freedom of the traces' standard errors, shape (c,).
        inner_freedom: Of the inner products', shape (c, c).
        left_out: The same moments without one probe, for samples that share probes.
        trace_variances: Unbiased, of one sample of each trace given the other probes, shape (c,).
        squared_traces: (tr K_a)² where it is better known than by the square of ``traces``, shape (c,).
        squared_trace_samples: Shape (k, c), with mean ``squared_traces``.
        trace_least: What positive semidefinite kernels' traces are at least, shape (c,).
        inner_least: What their inner products are at least, shape (c, c).
        rest: Dimensions of the state outside of what a sketch captured; ``None`` if there is no sketch.
        epsilon: Relative rounding error of the products.
    """

    traces: Small
    inner: Small
    trace_samples: Small | None = None
    inner_samples: Small | None = None
    trace_freedom: Small | None = None
    inner_freedom: Small | None = None
    left_out: LeftOut | None = None
    trace_variances: Small | None = None
    squared_traces: Small | None = None
    squared_trace_samples: Small | None = None
    trace_least: Small | None = None
    inner_least: Small | None = None
    rest: int | None = None
    epsilon: float = 2.0**-52

    def value(self, moment: Moment) -> float:
        """A moment by itself."""
        return float(self.traces[moment[0]] if len(moment) == 1 else self.inner[moment])

    def factor(self, moment: Moment) -> MomentFactor:
        """A moment with what is known of its error."""
        place = (..., *moment)  # the kernels are the last axes
        left = self.left_out
        if len(moment) == 1:
            left_out, least = None if left is None else left.traces, self.trace_least
            factor = _picked(place, self.traces, self.trace_samples, self.trace_freedom, left_out, least)
            if self.trace_variances is None:
                return factor
            return dataclasses.replace(factor, variance=float(self.trace_variances[moment[0]]))
        left_out, least = None if left is None else left.inner, self.inner_least
        return _picked(place, self.inner, self.inner_samples, self.inner_freedom, left_out, least)

    def monomial(self, powers: Mapping[Moment, float]) -> Monomial:
        """Π vⱼ^pⱼ with its standard error, and the influence of every sample."""
        factors, exponents = [], []
        for moment, power in powers.items():
            squared = len(moment) == 1 and power == 2 and self.squared_traces is not None
            factors.append(self._squared(moment) if squared else self.factor(moment))
            exponents.append(1 if squared else power)
        return self._of_factors(factors, exponents)

    def _squared(self, moment: Moment) -> MomentFactor:
        assert self.squared_traces is not None
        assert self.squared_trace_samples is not None
        (kernel,) = moment
        samples = self.squared_trace_samples[:, kernel]
        return MomentFactor(float(self.squared_traces[kernel]), samples, self.factor(moment).freedom)

    def _of_factors(self, factors: list[MomentFactor], powers: list[float]) -> Monomial:
        if any(factor.value == 0 for factor in factors):
            return Monomial(Summary(0.0, self._floor(0.0, None)))
        if factors[0].samples is None:
            value = math.prod(f.value**p for f, p in zip(factors, powers, strict=True))
            return Monomial(Summary(value, 0.0))
        paired = np.stack([np.asarray(factor.samples) for factor in factors], axis=1)
        value, influence = power_product([factor.value for factor in factors], powers, paired)
        freedom = ratio_freedom(factors, powers, paired, influence / value)
        if len(influence) < 2 or freedom == 0:
            return Monomial(Summary(value, None), influence)
        stderr = float(np.std(influence, ddof=1)) / math.sqrt(len(influence))
        if self.left_out is not None:
            stderr, freedom = with_shared_probes(
                Summary(value, stderr, freedom), factors, powers, self.left_out.probes
            )
        stderr = max(stderr, certain_error(value, factors, powers))
        if len(factors) == 1 and factors[0].variance is not None:
            stderr = max(stderr, shared_error(value, factors[0], powers[0]))
        return Monomial(Summary(value, self._floor(value, stderr), freedom), influence)

    def _floor(self, value: float, stderr: float | None) -> float | None:
        if self.trace_samples is None and self.inner_samples is None:
            return 0.0
        return None if stderr is None else max(stderr, ROUNDING * self.epsilon * abs(value))


def _picked(
    place: Any,
    values: Small,
    samples: Small | None,
    freedom: Small | None,
    left_out: Small | None,
    least: Small | None,
) -> MomentFactor:
    return MomentFactor(
        float(values[place]),
        None if samples is None else samples[place],
        math.inf if freedom is None else float(freedom[place]),
        None if left_out is None else left_out[place],
        -math.inf if least is None else float(least[place]),
    )
