"""A spectrum as probes see it, and every number that is a sum over eigenvalues, with its error bar."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.results import Cost, Estimate, student_t_quantile
from ntkscope.runs.moments import ROUNDING
from ntkscope.runs.quadrature import Quadrature, share_above, values_of
from ntkscope.runs.statistics import Summary, jackknife, summarise

__all__ = ["Spectrum"]

Small = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues of a kernel K: all of them, or their density as random probes see it.

    Made by :meth:`ntkscope.NTK.spectrum`. Every sum over eigenvalues tr f(K) follows from it at no
    further product, with the error of the probes and of the steps.

    Attributes:
        quadrature: Nodes and weights of every probe over what is not known of the spectrum; all
            eigenvalues where it is exact.
        n: Size of K.
        known: Largest eigenvalues that are known one by one, shape (c,).
        known_errors: What they may be off by, shape (c,).
        zeros: Eigenvalues 0 that are known besides: n - p of a model with fewer parameters than states.
        method: ``"lanczos"`` or ``"exact"``.
        seed: Of the probes.
        epsilon: Relative rounding of the products.
        cost: What was spent.

    >>> import numpy as np
    >>> spectrum = Spectrum.of_eigenvalues(np.array([3.0, 1.0]))
    >>> spectrum.moment(2).value, round(spectrum.log_det(1.0).value, 4)  # 9 + 1, log 4 + log 2
    (10.0, 2.0794)
    """

    quadrature: Quadrature = field(repr=False)
    n: int
    known: Small = field(default_factory=lambda: np.zeros(0), repr=False)
    known_errors: Small = field(default_factory=lambda: np.zeros(0), repr=False)
    zeros: int = 0
    method: str = "exact"
    seed: int | None = None
    epsilon: float = 2.0**-52
    cost: Cost = field(default_factory=Cost)

    @staticmethod
    def of_eigenvalues(values: Any, *, zeros: int = 0, **fields: Any) -> Spectrum:
        """The spectrum whose eigenvalues are all known, but for some that are 0."""
        known = np.sort(np.asarray(values, dtype=np.float64))
        return Spectrum(Quadrature.of_eigenvalues(known), len(known) + zeros, zeros=zeros, **fields)

    @property
    def is_exact(self) -> bool:
        """Whether all eigenvalues are known."""
        return self.method == "exact"

    @property
    def eigenvalues(self) -> Small | None:
        """All n of them, largest first, where they are known."""
        if not self.is_exact:
            return None
        return np.concatenate([self.quadrature.nodes[0][::-1], np.zeros(self.zeros)])

    @property
    def probes(self) -> int:
        """How many probes saw it; 0 where it is exact."""
        return 0 if self.is_exact else len(self.quadrature.nodes)

    @property
    def largest(self) -> float:
        """The largest eigenvalue, or the largest node, which is no larger and near it after some steps."""
        return float(max(self.quadrature.nodes.max(), self.known.max(initial=0.0)))

    def smallest_seen(self, share: float = 0.005) -> float:
        """An eigenvalue that this share of those which are not 0 to rounding lies below."""
        nodes = np.concatenate([self.known, self.quadrature.nodes.ravel()])
        each = self.quadrature.weights.ravel() * self._unknown / len(self.quadrature.nodes)
        weights = np.concatenate([np.ones(len(self.known)), each])
        above = nodes > self.epsilon * self.largest
        order = np.argsort(nodes[above])
        total = np.cumsum(weights[above][order])
        if not len(total):
            return 0.0
        return float(nodes[above][order][np.searchsorted(total, share * total[-1])])

    @property
    def _unknown(self) -> int:
        return self.n - self.zeros - len(self.known)

    def trace_of(self, function: Callable[[Small], Small], quantity: str = "trace of a function") -> Estimate:
        """Tr f(K) = Σᵢ f(λᵢ).

        Args:
            function: f, of an array of eigenvalues from 0 up, to one of the same shape.
            quantity: Its name.

        Returns:
            The estimate. Its standard error is that of the probes, half of what the Gauss and
            Gauss-Radau rules differ by, and what the known eigenvalues may be off by, together.
        """
        known = self._known_error(function)
        return self._estimate(self._samples(function), lambda part: float(part.mean()), quantity, known)

    def moment(self, power: int) -> Estimate:
        """Tr K^j, for j from 1.

        Raises:
            ValueError: If the power is below 1.
        """
        if power < 1:
            raise ValueError(f"the power of a moment is 1 or more, found {power}; tr K^0 is n = {self.n}")
        return self.trace_of(lambda x: x**power, f"moment {power}")

    def log_det(self, shift: float) -> Estimate:
        """Log det(K + λI) = Σᵢ log(λᵢ + λ), of a λ > 0.

        Raises:
            ValueError: If λ is not positive.
        """
        if not shift > 0:
            raise ValueError(f"the shift λ of log det(K + λI) must be positive, found {shift}; K is singular")
        found = self.trace_of(lambda x: np.log(x + shift), "log_det")
        if shift < self.epsilon * self.largest:
            note = f"the shift is below the rounding of the products, {self.epsilon * self.largest:.1g}"
            return dataclasses.replace(found, note=note)
        return found

    def entropy(self) -> Estimate:
        """Von Neumann's entropy -Σᵢ pᵢ log pᵢ with pᵢ = λᵢ/tr K, in nats: 0 to log rank K."""
        traces = self._samples(lambda x: x)
        if not traces[0].mean() > 0:
            return Estimate(math.nan, None, self.method, "entropy", cost=self.cost, note="K is zero")

        def entropy(pairs: Small) -> float:
            sums, trace = pairs.mean(axis=0)
            return math.log(trace) - sums / trace

        pairs = zip(self._samples(_x_log_x), traces, strict=True)
        gauss, radau = (np.stack(pair, axis=1) for pair in pairs)
        return self._estimate((gauss, radau), entropy, "entropy")

    def _samples(self, function: Callable[[Small], Small]) -> tuple[Small, Small]:
        """Of tr f(K), by either rule: two of shape (k,)."""
        certain = float(values_of(function, self.known).sum())
        if self.zeros:
            certain += self.zeros * float(values_of(function, np.zeros(1))[0])
        gauss, radau = self.quadrature.both(function)
        return self._unknown * gauss + certain, self._unknown * radau + certain

    def _known_error(self, function: Callable[[Small], Small]) -> float:
        """What f of the known eigenvalues may be off by, all on one side."""
        low, high = np.maximum(self.known - self.known_errors, 0), self.known + self.known_errors
        return float(np.abs(values_of(function, high) - values_of(function, low)).sum()) / 2

    def _estimate(
        self,
        samples: tuple[Small, Small],
        statistic: Callable[[Small], float],
        quantity: str,
        known_error: float = 0.0,
    ) -> Estimate:
        """A statistic of the samples by either rule, in the middle of both."""
        gauss, radau = (statistic(part) for part in samples)
        value = (gauss + radau) / 2
        if self.is_exact:
            return Estimate(value, 0.0, "exact", quantity, cost=self.cost, epsilon=self.epsilon)
        middle = (samples[0] + samples[1]) / 2
        summary = summarise(middle) if middle.ndim == 1 else jackknife(statistic, middle)
        return Estimate(
            value,
            self._stderr(summary, abs(gauss - radau) / 2 + known_error),
            self.method,
            quantity,
            samples=middle if middle.ndim == 1 else None,
            degrees_of_freedom=summary.degrees_of_freedom,
            cost=self.cost,
            seed=self.seed,
            epsilon=self.epsilon,
        )

    def _stderr(self, summary: Summary, besides: float) -> float | None:
        if summary.stderr is None:
            return None
        return max(math.hypot(summary.stderr, besides), ROUNDING * self.epsilon * abs(summary.value)) or None

    def count_above(self, at: Any) -> tuple[Small, Small, Small]:
        """How many eigenvalues lie above x, with a 95% band of the probes and the steps.

        A Gauss rule bounds what its probe sees of the spectrum on either side of every point
        (Chebyshev, Markov and Stieltjes): by the weights up to the node before it and up to the one
        after it. The band has both bounds' means, and Student's t of the probes beyond.

        Args:
            at: Points x > 0, shape (g,).

        Returns:
            The number, between the nodes by interpolation over log x, and both ends of the band: three
            of shape (g,); the band is nan for one probe.
        """
        points = np.asarray(at, dtype=np.float64)
        certain = (self.known[:, None] > points[None]).sum(axis=0)
        if self.is_exact:
            exact: Small = (self.quadrature.nodes[0][:, None] > points[None]).sum(axis=0) + certain * 1.0
            return exact, exact, exact
        rules = zip(self.quadrature.nodes, self.quadrature.weights, strict=True)
        samples = np.array([share_above(nodes, weights, points) for nodes, weights in rules])
        means = samples.mean(axis=0)
        half = np.full(means.shape, np.nan)
        if self.probes > 1:
            quantile = student_t_quantile(0.975, self.probes - 1)
            half = samples.std(axis=0, ddof=1) * (quantile / math.sqrt(self.probes))
        middle, low, high = certain + self._unknown * (means + half * np.array([[0], [-1], [1]]))
        if self.probes < 2:
            middle = certain + self._unknown * means[0]
        most = certain + self._unknown
        return middle, np.clip(low, certain, most), np.clip(high, certain, most)

    def density(self, at: Any, width: float, *, logarithmic: bool = True) -> tuple[Small, Small]:
        """Eigenvalues per unit of x, or per decade, smoothed by a normal curve; with standard errors.

        The errors are those of the probes. m steps do not tell apart eigenvalues that are nearer than
        about 1/m of the range, nor most of those below its 1/m²; there the density has bumps at the
        nodes, and :meth:`count_above` a band that says so.

        Args:
            at: Points x, shape (g,); positive ones where it is logarithmic.
            width: Standard deviation of the curve: in units of x, or in decades.
            logarithmic: Whether to count per decade; eigenvalues that are 0 are left out then.

        Returns:
            The density and its standard error, two of shape (g,); the errors are nan for one probe.

        Raises:
            ValueError: If the width is not positive.
        """
        if not width > 0:
            raise ValueError(f"the width must be positive, found {width}; use a value such as 0.15")
        points = np.asarray(at, dtype=np.float64)
        if logarithmic:
            points = np.log10(points)

        def curve(nodes: Small) -> Small:
            with np.errstate(divide="ignore"):
                placed = np.log10(nodes) if logarithmic else nodes
            curves: Small = np.exp(-0.5 * ((placed[:, None] - points[None]) / width) ** 2)
            return curves / (width * math.sqrt(2 * math.pi))

        return self._over_probes(curve)

    def _over_probes(self, curves: Callable[[Small], Small]) -> tuple[Small, Small]:
        """The sum of a curve for every eigenvalue, with its standard error; ``curves``: (m,) to (m, g)."""
        rules = zip(self.quadrature.nodes, self.quadrature.weights, strict=True)
        samples = np.array([weights @ curves(nodes) for nodes, weights in rules]) * self._unknown
        certain = curves(self.known).sum(axis=0) + self.zeros * curves(np.zeros(1))[0]
        mean: Small = samples.mean(axis=0) + certain
        if self.is_exact:
            return mean, np.zeros(mean.shape)
        if len(samples) < 2:
            return mean, np.full(mean.shape, np.nan)
        return mean, samples.std(axis=0, ddof=1) / math.sqrt(len(samples))

    def __str__(self) -> str:
        seen = "all eigenvalues" if self.is_exact else f"{self.probes} probes"
        return f"spectrum of n={self.n:,}, largest {self.largest:.4g} ({self.method}, {seen}, {self.cost})"

    __repr__ = __str__


def _x_log_x(x: Small) -> Small:
    # 0 log 0 = 0.
    return x * np.log(np.where(x > 0, x, 1.0))
