"""Traces and inner products of kernels, and the metrics that are made of them.

An estimator fills a :class:`Moments` with tr K_a and ⟨K_a, K_b⟩ of every kernel;
norm, effective rank and alignment follow, with the correlation of their parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ntkscope.results import Cost, Estimate
from ntkscope.runs.statistics import Summary, power_product

__all__ = ["METRICS", "LeftOut", "Moments", "estimate_metric", "left_out_probes"]

Small = NDArray[np.float64]

#: The metrics, and how many kernels each takes.
METRICS = {"trace": 1, "frobenius_norm": 1, "effective_rank": 1, "inner_product": 2, "alignment": 2}

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
        epsilon: Relative rounding error of the products.
    """

    traces: Small
    inner: Small
    trace_samples: Small | None = None
    inner_samples: Small | None = None
    trace_freedom: Small | None = None
    inner_freedom: Small | None = None
    left_out: LeftOut | None = None
    epsilon: float = 2.0**-52

    def trace(self, a: int) -> _Factor:
        """Tr K_a."""
        freedom = math.inf if self.trace_freedom is None else float(self.trace_freedom[a])
        samples = None if self.trace_samples is None else self.trace_samples[:, a]
        left_out = None if self.left_out is None else self.left_out.traces[:, :, a]
        return _Factor(float(self.traces[a]), samples, freedom, left_out)

    def product(self, a: int, b: int) -> _Factor:
        """⟨K_a, K_b⟩."""
        freedom = math.inf if self.inner_freedom is None else float(self.inner_freedom[a, b])
        samples = None if self.inner_samples is None else self.inner_samples[:, a, b]
        left_out = None if self.left_out is None else self.left_out.inner[:, :, a, b]
        return _Factor(float(self.inner[a, b]), samples, freedom, left_out)

    def power_product(self, factors: list[_Factor], powers: list[float]) -> tuple[Summary, Small | None]:
        """Π vⱼ^pⱼ with its standard error, and the influence of every sample."""
        if any(factor.value == 0 for factor in factors):
            return Summary(0.0, self._floor(0.0, None)), None
        if factors[0].samples is None:
            value = math.prod(f.value**p for f, p in zip(factors, powers, strict=True))
            return Summary(value, 0.0), None
        paired = np.stack([np.asarray(factor.samples) for factor in factors], axis=1)
        value, influence = power_product([factor.value for factor in factors], powers, paired)
        freedom = _ratio_freedom(factors, powers, paired, influence / value)
        if len(influence) < 2 or freedom == 0:
            return Summary(value, None), influence
        stderr = float(np.std(influence, ddof=1)) / math.sqrt(len(influence))
        if self.left_out is not None:
            stderr, freedom = _with_shared_probes(
                Summary(value, stderr, freedom), factors, powers, self.left_out.probes
            )
        return Summary(value, self._floor(value, stderr), freedom), influence

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


def estimate_metric(
    moments: Moments,
    metric: str,
    kernels: tuple[int, ...],
    *,
    method: str,
    cost: Cost,
    seed: int | None,
    note: str = "",
) -> Estimate:
    """A metric of the kernels with these indices.

    Args:
        moments: From an estimator.
        metric: One of :data:`METRICS`.
        kernels: One index, or two for ``"inner_product"`` and ``"alignment"``.
        method: The method's name, for the estimate.
        cost: What was spent.
        seed: The seed of the probes.
        note: What a reader should know.

    Returns:
        The metric. The effective rank and the alignment of a zero kernel are not
        defined: their value is nan, and the note says so.
    """
    a, b = kernels[0], kernels[-1]
    if metric == "trace":
        factors, powers = [moments.trace(a)], [1.0]
    elif metric == "frobenius_norm":
        factors, powers = [moments.product(a, a)], [0.5]
    elif metric == "inner_product":
        factors, powers = [moments.product(a, b)], [1.0]
    elif metric == "effective_rank":
        factors, powers = [moments.trace(a), moments.product(a, a)], [2.0, -1.0]
    else:
        factors, powers = (
            [moments.product(a, b), moments.product(a, a), moments.product(b, b)],
            [1.0, -0.5, -0.5],
        )
    norms = [moments.product(i, i).value for i in kernels]
    if metric in ("effective_rank", "alignment") and not all(value > 0 for value in norms):
        return Estimate(math.nan, None, method, metric, cost=cost, seed=seed, note=_undefined(metric, note))
    if metric == "frobenius_norm" and norms[0] < 0:
        factors = [_Factor(0.0, None, 0.0)]
        note = "the squared norm came out negative; spend more products"
    summary, influence = moments.power_product(factors, powers)
    return Estimate(
        summary.value,
        summary.stderr,
        method,
        metric,
        samples=influence,
        degrees_of_freedom=summary.degrees_of_freedom,
        cost=cost,
        seed=None if summary.stderr == 0 else seed,
        note=note,
    )


def _undefined(metric: str, note: str) -> str:
    text = f"the {metric.replace('_', ' ')} of a zero kernel is not defined"
    return f"{note}; {text}" if note else text
