"""A kernel traced over some axes of its state, and the numbers made of it."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkscope.results.array import Array, ArrayEstimate
from ntkscope.results.estimate import Estimate
from ntkscope.results.groups import Groups, jackknifed, products
from ntkscope.results.plain import Fields

__all__ = ["PartialTrace"]

# What rounding adds up to, relative to a number, in units of the products' own.
_ROUNDING = 4.0


@dataclass(frozen=True, eq=False, repr=False)
class PartialTrace(ArrayEstimate):
    """P, a kernel traced over some axes of its state: P[a, a′] = Σ_c K[(a, c), (a′, c)].

    It is symmetric and positive semidefinite, up to its error, and has the trace of K.

    Attributes:
        values: P, shape (entries, entries) with the kept axes flattened in the order of ``keep``.
        keep: Names of the kept axes.
        kept_shape: Their sizes.
        groups: Sums of independent estimates of P, from which the errors of numbers made of it follow;
            ``None`` for exact results and after :meth:`from_dict`, which knows those numbers all the same.
        trace: Tr P = tr K.
        frobenius_norm: ‖P‖_F.
        effective_rank: (tr P)² / ‖P‖²_F: how many kept directions share the motion.
    """

    quantity: str = "partial_trace"
    keep: tuple[str, ...] = ()
    kept_shape: tuple[int, ...] = ()
    groups: Groups | None = field(default=None, repr=False)
    trace: Estimate = field(default_factory=lambda: Estimate(math.nan))
    frobenius_norm: Estimate = field(default_factory=lambda: Estimate(math.nan))
    effective_rank: Estimate = field(default_factory=lambda: Estimate(math.nan))

    def with_numbers(self) -> PartialTrace:
        """The same with trace, norm and effective rank of its matrix."""
        trace = self._trace_moment()
        square = self._square_moment(self)
        squared = self._squared_trace()
        return dataclasses.replace(
            self,
            trace=self._estimate("trace", lambda t: t, [trace]),
            frobenius_norm=self._estimate("frobenius_norm", np.sqrt, [square]),
            effective_rank=self._estimate("effective_rank", lambda s, q: s / q, [squared, square]),
        )

    def alignment(self, other: Any) -> Estimate:
        """cos(P, P′) = ⟨P, P′⟩ / (‖P‖ ‖P′‖) with another one, or with a symmetric matrix.

        Two estimates with the same seed share their probes, and what moves together in them cancels in
        the error bar.

        Args:
            other: A partial trace that keeps the same axes, or an array of the same shape.

        Raises:
            ValueError: If the shapes differ.
        """
        if not isinstance(other, PartialTrace):
            matrix = np.asarray(other, dtype=np.float64)
            other = PartialTrace(matrix, np.zeros(matrix.shape), keep=self.keep, kept_shape=self.kept_shape)
        if other.shape != self.shape:
            raise ValueError(
                f"the other matrix has shape {other.shape}, expected {self.shape}; keep the same axes of both"
            )
        ours, theirs = _in_as_many_groups(self, other)
        moments = [ours._square_moment(theirs), ours._square_moment(ours), theirs._square_moment(theirs)]
        found = self._estimate(
            "alignment", lambda ab, aa, bb: ab / np.sqrt(aa * bb), moments, others=(other,)
        )
        cost = self.cost if other is self else self.cost + other.cost
        return dataclasses.replace(found, value=min(max(found.value, -1.0), 1.0), cost=cost)

    def tensor(self) -> Array:
        """P with its axes apart: shape (*kept_shape, *kept_shape)."""
        return self.values.reshape(*self.kept_shape, *self.kept_shape)

    # Moments, each of all groups and without each, or one number where nothing is random.

    def _trace_moment(self) -> Array:
        if self.groups is None:
            return np.array([np.trace(self.values)])
        traces = self._group_traces()
        sums, counts = traces.sums[:, 0], traces.counts
        with np.errstate(invalid="ignore", divide="ignore"):
            left = (sums.sum() - sums) / (counts.sum() - counts)
        return np.concatenate([[sums.sum() / counts.sum()], left])

    def _squared_trace(self) -> Array:
        traces = self._group_traces()
        return np.array([np.trace(self.values) ** 2]) if traces is None else products(traces, traces)

    def _group_traces(self) -> Any:
        if self.groups is None:
            return None
        diagonal = slice(None, None, self.shape[0] + 1)
        return Groups(self.groups.sums[:, diagonal].sum(axis=1, keepdims=True), self.groups.counts)

    def _square_moment(self, other: PartialTrace) -> Array:
        """⟨P, P′⟩."""
        ours, theirs = self.groups, other.groups
        if ours is None and theirs is None:
            return np.array([float(np.sum(self.values * other.values))])
        if ours is None or theirs is None:
            known = self.values if ours is None else other.values
            drawn = theirs if ours is None else ours
            assert drawn is not None
            parts = drawn.sums @ known.reshape(-1)
            left = (parts.sum() - parts) / (drawn.counts.sum() - drawn.counts)
            return np.concatenate([[parts.sum() / drawn.counts.sum()], left])
        return products(ours, theirs)

    def _estimate(
        self,
        quantity: str,
        statistic: Callable[..., Array],
        moments: list[Array],
        others: tuple[PartialTrace, ...] = (),
    ) -> Estimate:
        exact = self.is_exact and all(other.is_exact for other in others)
        value, stderr, freedom, note = 0.0, 0.0 if exact else None, math.inf, self.note
        if any(moment[0] <= 0 and quantity != "trace" for moment in moments[1:] or moments):
            value = math.nan if quantity != "frobenius_norm" else 0.0
            note = (
                f"the {quantity.replace('_', ' ')} of a zero matrix is not defined"
                if math.isnan(value)
                else note
            )
        elif exact:
            value = float(statistic(*moments)[0])
        else:
            groups = max(len(moment) for moment in moments)
            wide = [np.full(groups, moment[0]) if len(moment) == 1 else moment for moment in moments]
            degrees = [1 if quantity == "trace" else 2] * len(moments)
            value, stderr, freedom = jackknifed(statistic, wide, degrees)
            if stderr is not None:
                stderr = max(stderr, _ROUNDING * self.epsilon * abs(value)) or None
        return Estimate(
            value, stderr, self.method, quantity, degrees_of_freedom=freedom, cost=self.cost,
            seed=self.seed, note=note, converged=self.converged, epsilon=self.epsilon,
        )  # fmt: skip

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in zip(self.keep, self.kept_shape, strict=True))
        rank = self.effective_rank.value_text()
        return f"partial trace ({sizes}) {self._error_text()}, effective rank {rank} ({self._details()})"

    def _repr_html_(self) -> str:
        return f"<span>{html.escape(repr(self))}</span>"

    def to_dict(self) -> dict[str, Any]:
        """All fields but the groups, for strict JSON; :meth:`from_dict` reads it back."""
        numbers = (self.trace, self.frobenius_norm, self.effective_rank)
        return {
            **super().to_dict(),
            "keep": list(self.keep),
            "kept_shape": list(self.kept_shape),
            **{number.quantity: number.to_dict() for number in numbers},
        }

    @classmethod
    def _own_fields(cls, fields: Fields) -> dict[str, Any]:
        return {
            "keep": tuple(fields.sequence("keep")),
            "kept_shape": tuple(fields.sequence("kept_shape")),
            "trace": Estimate.from_dict(fields.get("trace")),
            "frobenius_norm": Estimate.from_dict(fields.get("frobenius_norm")),
            "effective_rank": Estimate.from_dict(fields.get("effective_rank")),
        }


def _in_as_many_groups(one: PartialTrace, two: PartialTrace) -> tuple[PartialTrace, PartialTrace]:
    """Both in as many groups, so that those that share probes stand side by side."""
    counts = [len(part.groups.counts) for part in (one, two) if part.groups is not None]
    if len(counts) < 2 or counts[0] == counts[1]:
        return one, two
    fewest = min(counts)
    first, second = (
        dataclasses.replace(part, groups=None if part.groups is None else part.groups.merged(fewest))
        for part in (one, two)
    )
    return first, second
