"""Means, standard errors, and how they travel through powers and ratios.

Every function takes samples as float64 NumPy arrays, and answers with a
:class:`Summary`: a mean, its standard error, and the degrees of freedom of
Student's t that make the interval cover what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Summary",
    "combine_independent",
    "effective_degrees_of_freedom",
    "jackknife",
    "power_product",
    "summarise",
    "summarise_sums",
]

Small = NDArray[np.float64]

#: The excess kurtosis of (gᵀu)², the heaviest quadratic form there is.
_LARGEST_KURTOSIS = 12.0


@dataclass(frozen=True)
class Summary:
    """A value, its standard error (``None``: cannot be known), and Student's degrees of freedom."""

    value: float
    stderr: float | None
    degrees_of_freedom: float = math.inf


def effective_degrees_of_freedom(
    count: int, variance: float, level: float | None = None, *, heaviness: float = 1.0
) -> float:
    """Degrees of freedom of the standard error of a mean of quadratic forms.

    A quadratic form ωᵀAω with A ≥ 0 is nearly a multiple of χ² with
    ν = 2 mean²/variance degrees of freedom, of excess kurtosis 12/ν. Spectra that
    decay double that (1/i², 0.9^i); no form has more than 12, so κ = min(24/ν, 12).
    The variance of k samples has the relative variance κ/k + 2/(k-1), and Student's
    t with 2/(κ/k + 2/(k-1)) degrees of freedom covers 95% (tried: χ²₁, six
    samples: 95%, where k-1 covers 83%).

    Args:
        count: Number of samples k ≥ 2.
        variance: Variance of one sample.
        level: Mean of the random, non-negative part of a sample; ``None`` if the
            samples are no quadratic forms, for which κ = 0.
        heaviness: Factor on κ, for statistics of higher degree in the probes.

    >>> round(effective_degrees_of_freedom(20, variance=2.0, level=1.0), 2)
    2.84
    >>> round(effective_degrees_of_freedom(20, variance=1.0), 6)
    19.0
    """
    kurtosis = 0.0
    if level is not None and variance > 0:
        nu = 2 * level * level / variance
        kurtosis = min(_LARGEST_KURTOSIS, 24 / nu) if nu > 0 else _LARGEST_KURTOSIS
        kurtosis *= heaviness
    return 2 / (kurtosis / count + 2 / (count - 1))


def summarise(samples: Small, *, level: float | None = None) -> Summary:
    """Mean of independent samples with its standard error.

    Args:
        samples: Shape (k,).
        level: Mean of the random part, where samples are a known number plus a
            quadratic form; see :func:`effective_degrees_of_freedom`.

    Returns:
        The mean, std/√k (``None`` for a single sample), and degrees of freedom.

    Raises:
        ValueError: If there is no sample.

    >>> summarise(np.array([1.0, 3.0]))
    Summary(value=2.0, stderr=1.0, degrees_of_freedom=1.0)
    """
    count = len(samples)
    if count == 0:
        raise ValueError("a mean needs at least one sample, found none; spend at least one product")
    mean = float(np.mean(samples))
    if count == 1:
        return Summary(mean, None)
    variance = float(np.var(samples, ddof=1))
    return Summary(mean, math.sqrt(variance / count), effective_degrees_of_freedom(count, variance, level))


def summarise_sums(samples: Small) -> Summary:
    """Mean of sums of independent quadratic forms, with its standard error.

    The variance of a sum is the sum of the parts' variances, each found from its own k samples:
    B equal parts make it as sure from two samples as one part from B + 1.

    Args:
        samples: The parts, shape (k, B); rows are independent, and so are columns.

    Returns:
        The mean of the rows' sums, its standard error (``None`` for a single row), and degrees of
        freedom after Welch and Satterthwaite: 2V²/D - 2 with V = Σ_b v_b, D = Σ_b v_b² r_b/(1 + r_b),
        r_b = κ_b/k + 2/(k-1); for one part those of :func:`effective_degrees_of_freedom`.

    Raises:
        ValueError: If there is no row.

    >>> round(summarise_sums(np.array([[1.0, 5.0], [3.0, 1.0]])).stderr ** 2, 12)  # (2 + 8) / 2
    5.0
    """
    count = len(samples)
    if count == 0:
        raise ValueError("a mean needs at least one sample, found none; spend at least one product")
    means = samples.mean(axis=0)
    if count == 1:
        return Summary(float(means.sum()), None)
    variances = samples.var(axis=0, ddof=1)
    total = float(variances.sum())
    # κ_b = min(24/ν_b, 12), ν_b = 2 mean²/variance.
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = np.minimum(_LARGEST_KURTOSIS, np.nan_to_num(12 * variances / means**2))
    relative = kurtosis / count + 2 / (count - 1)
    # v_b² is on average too large by its own variance, and so is V².
    doubt = float((variances**2 * relative / (1 + relative)).sum())
    freedom = 2 * total**2 / doubt - 2 if doubt > 0 else float(count - 1)
    return Summary(float(means.sum()), math.sqrt(total / count), freedom)


def jackknife(statistic: Callable[[Small], float], samples: Small) -> Summary:
    """Leave-one-out jackknife of any statistic of rows of samples.

    stderr² = (k-1)/k Σᵢ (θ₋ᵢ - θ̄₋)², with θ₋ᵢ the statistic without row i.

    Args:
        statistic: Takes samples of shape (k, ...) to a number.
        samples: Shape (k, ...).

    Returns:
        The statistic of all samples, its standard error (``None`` for a single
        sample), and k-1 degrees of freedom.

    >>> round(jackknife(lambda x: float(np.mean(x)), np.array([1.0, 3.0])).stderr, 12)
    1.0
    """
    count = len(samples)
    value = statistic(samples)
    if count < 2:
        return Summary(value, None)
    left_out = np.array([statistic(np.delete(samples, i, axis=0)) for i in range(count)])
    variance = (count - 1) / count * float(np.sum((left_out - left_out.mean()) ** 2))
    return Summary(value, math.sqrt(variance), float(count - 1))


def power_product(values: Sequence[float], powers: Sequence[float], samples: Small) -> tuple[float, Small]:
    """Π vⱼ^pⱼ with one influence value a sample, which keeps the correlation of the factors.

    To first order the relative error of a product of powers is Σ pⱼ δvⱼ/vⱼ; with
    paired samples xᵢⱼ of every factor, errors that move together cancel.

    Args:
        values: The m factors, none of them 0.
        powers: Their m exponents.
        samples: Shape (k, m): paired samples, column j with mean vⱼ.

    Returns:
        The product, and k values whose mean is the product and whose standard
        error is the product's.

    >>> value, influence = power_product([2.0, 4.0], [2, -1], np.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> value, influence.tolist()
    (1.0, [0.5, 1.5])
    """
    value = math.prod(v**p for v, p in zip(values, powers, strict=True))
    centre = np.asarray(values, dtype=np.float64)
    relative = (samples - centre) / centre
    return value, value * (1 + relative @ np.asarray(powers, dtype=np.float64))


def combine_independent(summaries: Sequence[Summary], powers: Sequence[float]) -> Summary:
    """Π vⱼ^pⱼ of independent estimates, degrees of freedom after Welch and Satterthwaite.

    A factor of which ``stderr`` is ``None`` makes the product's ``None``.

    >>> combine_independent([Summary(10.0, 0.3, 9.0), Summary(2.0, 0.08, 9.0)], [1, -1]).stderr
    0.25
    """
    value = math.prod(s.value**p for s, p in zip(summaries, powers, strict=True))
    parts = []
    for summary, power in zip(summaries, powers, strict=True):
        if summary.stderr is None:
            return Summary(value, None)
        parts.append((power * summary.stderr / summary.value) ** 2)
    total = sum(parts)
    if total == 0:
        return Summary(value, 0.0)
    spread = sum(part**2 / summary.degrees_of_freedom for part, summary in zip(parts, summaries, strict=True))
    freedom = total**2 / spread if spread > 0 else math.inf
    return Summary(value, abs(value) * math.sqrt(total), freedom)
