"""The metrics of one kernel that were measured together, by their names."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

from ntkscope.results.estimate import Cost, Estimate
from ntkscope.results.frames import frame, record, words
from ntkscope.results.plain import Fields

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Measurement"]

# Reserved by to_dict, which puts the metrics beside them.
_COST, _OTHERS = "cost", "others"


@dataclass(frozen=True, eq=False, repr=False)
class Measurement(Mapping[str, Any]):
    """The metrics of one kernel, measured together: a mapping of their names.

    ``m["trace"]`` and ``m.trace`` are an :class:`Estimate`; a metric of two kernels, such as
    ``m["alignment"]``, is a list of them, one for each of the other kernels. A metric that was not
    measured is not in it: a ``KeyError`` or ``AttributeError`` says what is.

    Attributes:
        estimates: The metrics of the kernel itself.
        pairs: The metrics of the kernel and each of the others.
        cost: What all of it cost together (shared work counted once).
        others: Names of the other kernels, if they have any.

    >>> m = Measurement({"trace": Estimate(3.0, 0.0)}, {"alignment": [Estimate(0.9, 0.0)]})
    >>> list(m), m["trace"].value, m.alignment[0].value
    (['trace', 'alignment'], 3.0, 0.9)
    """

    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    pairs: Mapping[str, Sequence[Estimate]] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    others: Sequence[str] = ()

    def __post_init__(self) -> None:
        reserved = {_COST, _OTHERS}
        taken = sorted(reserved.union(self.estimates) & self.pairs.keys() | reserved & self.estimates.keys())
        if taken:
            raise ValueError(f"a metric cannot be named {taken[0]!r} here, it is taken; use another name")
        object.__setattr__(self, "estimates", dict(self.estimates))
        object.__setattr__(self, "pairs", {name: list(found) for name, found in self.pairs.items()})
        object.__setattr__(self, "others", tuple(self.others))
        for name, found in self.pairs.items():
            if self.others and len(found) != len(self.others):
                raise ValueError(
                    f"{name!r} has {len(found)} values, for {len(self.others)} other kernels "
                    f"({', '.join(self.others)}); give one name for each"
                )

    # A mapping of names.

    @overload
    def __getitem__(self, name: Literal["trace", "frobenius_norm", "effective_rank"]) -> Estimate: ...
    @overload
    def __getitem__(self, name: Literal["alignment"]) -> list[Estimate]: ...
    @overload
    def __getitem__(self, name: str) -> Any: ...
    def __getitem__(self, name: str) -> Any:
        if name in self.estimates:
            return self.estimates[name]
        if name in self.pairs:
            return self.pairs[name]
        raise KeyError(self._missing(name))

    def __iter__(self) -> Iterator[str]:
        yield from self.estimates
        yield from self.pairs

    def __len__(self) -> int:
        return len(self.estimates) + len(self.pairs)

    # The same as attributes: the metrics that type checkers should know, and any other.

    @property
    def trace(self) -> Estimate:
        """Tr K."""
        return self._attribute("trace")

    @property
    def frobenius_norm(self) -> Estimate:
        """‖K‖_F."""
        return self._attribute("frobenius_norm")

    @property
    def effective_rank(self) -> Estimate:
        """(tr K)² / ‖K‖²_F."""
        return self._attribute("effective_rank")

    @property
    def alignment(self) -> list[Estimate]:
        """cos(K, K′), one for each of the other kernels."""
        found: list[Estimate] = self._attribute("alignment")
        return found

    if not TYPE_CHECKING:  # so that type checkers catch a misspelt name

        def __getattr__(self, name: str) -> Any:
            # Copying and pickling ask for names like these before there are fields.
            if name.startswith("_") or name in type(self).__dataclass_fields__:
                raise AttributeError(name)
            return self._attribute(name)

    def _attribute(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(self._missing(name))
        return self[name]

    def _missing(self, name: str) -> str:
        return (
            f"{name!r} was not measured; this measurement holds {', '.join(self) or 'nothing'}; "
            "measure a metric alone by the kernel's method of its name, such as ntk.trace()"
        )

    # Others made of it.

    def map(self, change: Callable[[Estimate], Estimate]) -> Measurement:
        """The measurement with every estimate changed."""
        return Measurement(
            {name: change(estimate) for name, estimate in self.estimates.items()},
            {name: [change(estimate) for estimate in found] for name, found in self.pairs.items()},
            self.cost,
            self.others,
        )

    def with_estimates(self, estimates: Mapping[str, Estimate], cost: Cost | None = None) -> Measurement:
        """The measurement with some metrics of the kernel itself replaced or added.

        Args:
            estimates: By name.
            cost: Of everything together, if it has changed.
        """
        return dataclasses.replace(
            self, estimates={**self.estimates, **estimates}, cost=self.cost if cost is None else cost
        )

    # For people.

    def rows(self) -> Iterator[tuple[str, Estimate]]:
        """The metrics that were measured, as (name, estimate).

        Those of two kernels say which the other one is, by its name, or by its place where it has none.
        """
        for metric, other, estimate in self._entries():
            yield words(metric) + (f" with {other}" if other and self.others else other), estimate

    def _entries(self) -> Iterator[tuple[str, str, Estimate]]:
        """Every metric with the name of the other kernel, empty where there is none."""
        for metric, estimate in self.estimates.items():
            yield metric, "", estimate
        for metric, found in self.pairs.items():
            places = self.others or ([""] if len(found) == 1 else [f"[{i}]" for i in range(len(found))])
            for other, estimate in zip(places, found, strict=True):
                yield metric, other, estimate

    def to_pandas(self) -> DataFrame:
        """A row for every metric, as :meth:`Measurements.to_pandas` has them for every kernel.

        Raises:
            ImportError: If pandas is not installed.
        """
        return frame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """The rows of :meth:`to_pandas`, without pandas."""
        return [record(metric, other, estimate) for metric, other, estimate in self._entries()]

    def __str__(self) -> str:
        rows = [*self.rows(), ("together", self.cost)]
        width = max(16, *(len(name) + 2 for name, _ in rows))
        return "\n".join(f"{name:<{width}}{value}" for name, value in rows)

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

    # For files.

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, for strict JSON; :meth:`from_dict` reads it back."""
        return {
            **{name: estimate.to_dict() for name, estimate in self.estimates.items()},
            **{name: [estimate.to_dict() for estimate in found] for name, found in self.pairs.items()},
            **({_OTHERS: list(self.others)} if self.others else {}),
            _COST: self.cost.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Measurement:
        """The measurement that :meth:`to_dict` wrote, without samples.

        Raises:
            ValueError: If a field is missing or wrong, and it says of which metric.
        """
        fields = Fields(data, "a measurement")
        cost = Cost.from_dict(fields.get(_COST))
        estimates: dict[str, Estimate] = {}
        pairs: dict[str, list[Estimate]] = {}
        for name, found in data.items():
            if name in (_COST, _OTHERS):
                continue
            try:
                if isinstance(found, list):
                    pairs[name] = [Estimate.from_dict(one) for one in found]
                else:
                    estimates[name] = Estimate.from_dict(found)
            except ValueError as error:
                raise ValueError(f"the metric {name!r} cannot be read: {error}") from error
        return cls(estimates, pairs, cost, fields.texts(_OTHERS) if _OTHERS in data else ())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Measurement):
            return NotImplemented
        mine, its = ((m.estimates, m.pairs, m.cost, m.others) for m in (self, other))
        return mine == its
