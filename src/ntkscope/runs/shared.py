"""The errors of products of moments: what samples share, what is certain, what cancels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ntkscope.runs.statistics import Summary

__all__ = [
    "MomentFactor",
    "certain_error",
    "left_out_probes",
    "ratio_freedom",
    "shared_error",
    "with_shared_probes",
]

Small = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MomentFactor:
    """One moment with what is known of its error.

    Attributes:
        value: The moment.
        samples: Samples, or influence values, with that mean, shape (k,); ``None`` if it is exact.
        freedom: Degrees of freedom of their standard error; 0 if not known.
        left_out: The samples without one probe, shape (g, k-1), where they share probes.
        least: What it is at least, of positive semidefinite kernels.
        variance: Unbiased, of one sample given the other probes, where that is known.
    """

    value: float
    samples: Small | None = field(repr=False)
    freedom: float
    left_out: Small | None = None
    least: float = -math.inf
    variance: float | None = None


def shared_error(value: float, factor: MomentFactor, power: float) -> float:
    """Standard error of v^p from the known variance V of one sample of v.

    What V has more than the spread s² of the samples is what they share, Cov(tᵢ, tⱼ), so that the
    variance of their mean is E[V - (k-1)/k s²].
    """
    samples = np.asarray(factor.samples)
    assert factor.variance is not None
    left = factor.variance - (len(samples) - 1) / len(samples) * float(np.var(samples, ddof=1))
    return abs(value * power / factor.value) * math.sqrt(max(0.0, left))


def certain_error(value: float, factors: list[MomentFactor], powers: list[float]) -> float:
    """How far Π vⱼ^pⱼ is from that of the nearest moments that are possible.

    Where as many probes have run as a kernel has large directions, all leave-one-out samples may
    miss the same one: each is made of nearly the same probes. They agree, and are all too small;
    but what all probes together captured of a positive semidefinite kernel is in it for certain.
    """
    if all(factor.value >= factor.least for factor in factors):
        return 0.0
    nearest = math.prod(max(f.value, f.least) ** p for f, p in zip(factors, powers, strict=True))
    return abs(nearest - value)


def ratio_freedom(factors: list[MomentFactor], powers: list[float], paired: Small, relative: Small) -> float:
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


def with_shared_probes(
    summary: Summary, factors: list[MomentFactor], powers: list[float], probes: list[int]
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
