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

from ntkscope.results import Estimate
from ntkscope.runs.statistics import Summary, combine_independent, power_product

__all__ = [
    "IndependentMoments",
    "LeftOut",
    "Moment",
    "MomentSource",
    "Moments",
    "Monomial",
    "TraceFromElsewhere",
    "left_out_probes",
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
    epsilon: float = 2.0**-52

    def value(self, moment: Moment) -> float:
        """A moment by itself."""
        return float(self.traces[moment[0]] if len(moment) == 1 else self.inner[moment])

    def factor(self, moment: Moment) -> _Factor:
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

    def _squared(self, moment: Moment) -> _Factor:
        assert self.squared_traces is not None
        assert self.squared_trace_samples is not None
        (kernel,) = moment
        samples = self.squared_trace_samples[:, kernel]
        return _Factor(float(self.squared_traces[kernel]), samples, self.factor(moment).freedom)

    def _of_factors(self, factors: list[_Factor], powers: list[float]) -> Monomial:
        if any(factor.value == 0 for factor in factors):
            return Monomial(Summary(0.0, self._floor(0.0, None)))
        if factors[0].samples is None:
            value = math.prod(f.value**p for f, p in zip(factors, powers, strict=True))
            return Monomial(Summary(value, 0.0))
        paired = np.stack([np.asarray(factor.samples) for factor in factors], axis=1)
        value, influence = power_product([factor.value for factor in factors], powers, paired)
        freedom = _ratio_freedom(factors, powers, paired, influence / value)
        if len(influence) < 2 or freedom == 0:
            return Monomial(Summary(value, None), influence)
        stderr = float(np.std(influence, ddof=1)) / math.sqrt(len(influence))
        if self.left_out is not None:
            stderr, freedom = _with_shared_probes(
                Summary(value, stderr, freedom), factors, powers, self.left_out.probes
            )
        stderr = max(stderr, _certain_error(value, factors, powers))
        if len(factors) == 1 and factors[0].variance is not None:
            stderr = max(stderr, _shared_error(value, factors[0], powers[0]))
        return Monomial(Summary(value, self._floor(value, stderr), freedom), influence)

    def _floor(self, value: float, stderr: float | None) -> float | None:
        if self.trace_samples is None and self.inner_samples is None:
            return 0.0
        return None if stderr is None else max(stderr, ROUNDING * self.epsilon * abs(value))


@dataclass(frozen=True, eq=False)
class _Factor:
    """One moment: its value, its samples, their degrees of freedom."""

    value: float
    samples: Small | None = field(repr=False)
    freedom: float
    left_out: Small | None = None
    least: float = -math.inf
    variance: float | None = None


def _picked(
    place: Any,
    values: Small,
    samples: Small | None,
    freedom: Small | None,
    left_out: Small | None,
    least: Small | None,
) -> _Factor:
    return _Factor(
        float(values[place]),
        None if samples is None else samples[place],
        math.inf if freedom is None else float(freedom[place]),
        None if left_out is None else left_out[place],
        -math.inf if least is None else float(least[place]),
    )


def _shared_error(value: float, factor: _Factor, power: float) -> float:
    """Standard error of v^p from the known variance V of one sample of v.

    What V has more than the spread s² of the samples is what they share, Cov(tᵢ, tⱼ), so that the
    variance of their mean is E[V - (k-1)/k s²].
    """
    samples = np.asarray(factor.samples)
    assert factor.variance is not None
    left = factor.variance - (len(samples) - 1) / len(samples) * float(np.var(samples, ddof=1))
    return abs(value * power / factor.value) * math.sqrt(max(0.0, left))


def _certain_error(value: float, factors: list[_Factor], powers: list[float]) -> float:
    """How far Π vⱼ^pⱼ is from that of the nearest moments that are possible.

    Where as many probes have run as a kernel has large directions, all leave-one-out samples may
    miss the same one: each is made of nearly the same probes. They agree, and are all too small;
    but what all probes together captured of a positive semidefinite kernel is in it for certain.
    """
    if all(factor.value >= factor.least for factor in factors):
        return 0.0
    nearest = math.prod(max(f.value, f.least) ** p for f, p in zip(factors, powers, strict=True))
    return abs(nearest - value)


def _ratio_freedom(factors: list[_Factor], powers: list[float], paired: Small, relative: Small) -> float:
    """Degrees of freedom of Π vⱼ^pⱼ from those of its factors.

    A factor's are fewer than k - 1 because of its heaviest directions. Where these cancel (both
    kernels share them, and so do numerator and denominator) the doubt that they bring cancels too:
    of it is left the share of the variance that is left.

    Args:
        factors: With their degrees of freedom; 0 if not known.
        powers: Their exponents.
        paired: The factors' samples, shape (k, m).
        relative: The relative influence of each sample on the product, shape (k,).
    """
    freedom = min(factor.freedom for factor in factors)
    count = len(relative)
    if count < 2 or freedom == 0 or len(factors) == 1:
        return freedom
    scales = [power / factor.value for factor, power in zip(factors, powers, strict=True)]
    largest = max(np.var(paired, axis=0, ddof=1) * np.square(scales))
    if largest == 0:
        return freedom
    plain = 2 / (count - 1)
    share = min(1.0, float(np.var(relative, ddof=1)) / largest)
    return 2 / (plain + share * max(0.0, 2 / freedom - plain))


def left_out_probes(probes: int) -> list[int]:
    """Which probes are left out, one at a time, to see what the samples share.

    All where they are few; the choice depends on the number of probes alone.
    """
    count = min(probes, max(24, 2400 // probes))
    return sorted({int(probe) for probe in np.linspace(0, probes - 1, count)})


#: With fewer degrees of freedom than this the covariance of the samples is not told but bounded.
_TOLD = 4.0


def _with_shared_probes(
    summary: Summary, factors: list[_Factor], powers: list[float], probes: list[int]
) -> tuple[float, float]:
    """Standard error and degrees of freedom of Π vⱼ^pⱼ from leave-one-out samples tᵢ.

    Each tᵢ is unbiased given the other probes, whose approximation it corrects with
    probe i. Let hᵢⱼ = tᵢ - tᵢ⁽⁻ʲ⁾ be what probe j changes in it. Of the products of
    tᵢ = tᵢ⁽⁻ʲ⁾ + hᵢⱼ and tⱼ = tⱼ⁽⁻ⁱ⁾ + hⱼᵢ only one has a mean: Cov(tᵢ, tⱼ) = E hᵢⱼhⱼᵢ. The
    spread of the samples shows (Var t - Cov)/k, so the spread and the mean of hᵢⱼhⱼᵢ
    over pairs add up to the variance of the mean of the samples, without bias.

    Args:
        summary: The product, and the error and degrees of freedom that the spread shows.
        factors: The factors with their samples and left-out samples.
        powers: Their exponents.
        probes: Which probes were left out.
    """
    spread, freedom = summary.stderr or 0.0, summary.degrees_of_freedom
    terms = list(zip(factors, powers, strict=True))
    full = summary.value * np.sum([p * np.asarray(f.samples) / f.value for f, p in terms], axis=0)
    left = summary.value * np.sum([p * np.asarray(f.left_out) / f.value for f, p in terms], axis=0)
    count = len(probes)
    changes = np.zeros((count, count))
    for row, probe in enumerate(probes):
        changes[row] = full[probes] - np.insert(left[row], probe, full[probe])[probes]
    pairs = changes * changes.T
    rows = pairs.sum(axis=1) / (count - 1)
    covariance, noise = float(rows.mean()), 4 * float(np.var(rows, ddof=1)) / count
    variance = spread**2 + max(0.0, covariance)
    doubt = spread**4 / freedom + noise / 2
    told = variance**2 / doubt if doubt > 0 else freedom
    if told >= min(freedom, _TOLD):
        # The samples are skewed as before: what the covariance adds is no reason to trust them more.
        return math.sqrt(variance), min(told, freedom)
    return _bound(spread, left), freedom


def _bound(spread: float, left: Small) -> float:
    """Upper bound of the standard error, where the covariance drowns in noise.

    Of the variance that d probes make together the spread shows 1/d, the jackknife d
    times as much; their geometric mean is at least the variance (Cauchy-Schwarz). The
    jackknife is that of one probe less: the spread of the samples with one probe less
    says how much that matters.
    """
    fewer = left.shape[1]
    jackknife = fewer / math.sqrt(fewer + 1) * float(np.std(left.mean(axis=1), ddof=1))
    typical = math.sqrt(float(np.mean(np.var(left, axis=1, ddof=1))) / fewer)
    shrink = min(1.0, spread / typical) if typical > 0 else 1.0
    return math.sqrt(spread * max(spread, jackknife * shrink))


class IndependentMoments:
    """Moments that were estimated one by one, by runs that share no randomness.

    Args:
        estimates: By moment.
    """

    def __init__(self, estimates: Mapping[Moment, Estimate]) -> None:
        self._estimates = estimates

    def value(self, moment: Moment) -> float:
        """A moment by itself."""
        return self._estimates[moment].value

    def monomial(self, powers: Mapping[Moment, float]) -> Monomial:
        """Π vⱼ^pⱼ, its error to first order; a moment by itself keeps its samples."""
        estimates = [self._estimates[moment] for moment in powers]
        summaries = [_summary(estimate) for estimate in estimates]
        note = "; ".join(dict.fromkeys(e.note for e in estimates if e.note))
        if list(powers.values()) == [1]:
            return Monomial(summaries[0], estimates[0].samples, note)
        if any(summary.value == 0 for summary in summaries):
            return Monomial(Summary(0.0, None), note=note)
        return Monomial(combine_independent(summaries, list(powers.values())), note=note)


class TraceFromElsewhere:
    """The moments of a source, but for the trace of one kernel, which was found in another way.

    Args:
        rest: All other moments.
        trace: The trace, independent of them.
        kernel: Of which kernel.
    """

    def __init__(self, rest: MomentSource, trace: Estimate, kernel: int = 0) -> None:
        self._rest = rest
        self._trace = trace
        self._moment = (kernel,)

    def value(self, moment: Moment) -> float:
        """A moment by itself."""
        return self._trace.value if moment == self._moment else self._rest.value(moment)

    def monomial(self, powers: Mapping[Moment, float]) -> Monomial:
        """Π vⱼ^pⱼ, with the trace's error beside that of the rest."""
        power = powers.get(self._moment)
        if power is None:
            return self._rest.monomial(powers)
        trace = IndependentMoments({self._moment: self._trace}).monomial({self._moment: 1})
        others = {moment: p for moment, p in powers.items() if moment != self._moment}
        if not others and power == 1:
            return Monomial(trace.summary, trace.samples, trace.note, self._trace.method)
        rest = self._rest.monomial(others)
        summaries = [trace.summary, rest.summary]
        note = "; ".join(dict.fromkeys(note for note in (trace.note, rest.note) if note))
        source = f"trace by {self._trace.method}"
        if any(summary.value == 0 for summary in summaries):
            return Monomial(Summary(0.0, None), note=note, source=source)
        return Monomial(combine_independent(summaries, [power, 1]), note=note, source=source)


def _summary(estimate: Estimate) -> Summary:
    return Summary(estimate.value, estimate.stderr, estimate.degrees_of_freedom)
