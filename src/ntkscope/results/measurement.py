"""The metrics of a kernel that were measured together, by their names."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ntkscope.results.estimate import Cost, Estimate
from ntkscope.results.plain import Fields

__all__ = ["Measurement", "Measurements"]

# Reserved by to_dict, which puts the metrics beside it.
_COST = "cost"


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

    >>> m = Measurement({"trace": Estimate(3.0, 0.0)}, {"alignment": [Estimate(0.9, 0.0)]})
    >>> list(m), m["trace"].value, m.alignment[0].value
    (['trace', 'alignment'], 3.0, 0.9)
    """

    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    pairs: Mapping[str, Sequence[Estimate]] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        taken = sorted({_COST, *self.estimates} & self.pairs.keys() | {_COST} & self.estimates.keys())
        if taken:
            raise ValueError(f"a metric cannot be named {taken[0]!r} here, it is taken; use another name")
        object.__setattr__(self, "estimates", dict(self.estimates))
        object.__setattr__(self, "pairs", {name: list(found) for name, found in self.pairs.items()})

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
        )

    def with_estimates(self, estimates: Mapping[str, Estimate], cost: Cost | None = None) -> Measurement:
        """The measurement with some metrics of the kernel itself replaced or added.

        Args:
            estimates: By name.
            cost: Of everything together, if it has changed.
        """
        return Measurement({**self.estimates, **estimates}, self.pairs, self.cost if cost is None else cost)

    # For people.

    def rows(self) -> Iterator[tuple[str, Estimate]]:
        """The metrics that were measured, as (name, estimate)."""
        for name, estimate in self.estimates.items():
            yield _words(name), estimate
        for name, found in self.pairs.items():
            for index, estimate in enumerate(found):
                yield _words(name) + (f" {index}" if len(found) > 1 else ""), estimate

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
            _COST: self.cost.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Measurement:
        """The measurement that :meth:`to_dict` wrote, without samples.

        Raises:
            ValueError: If a field is missing or wrong, and it says of which metric.
        """
        cost = Cost.from_dict(Fields(data, "a measurement").get(_COST))
        estimates: dict[str, Estimate] = {}
        pairs: dict[str, list[Estimate]] = {}
        for name, found in data.items():
            if name == _COST:
                continue
            try:
                if isinstance(found, list):
                    pairs[name] = [Estimate.from_dict(one) for one in found]
                else:
                    estimates[name] = Estimate.from_dict(found)
            except ValueError as error:
                raise ValueError(f"the metric {name!r} cannot be read: {error}") from error
        return cls(estimates, pairs, cost)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Measurement):
            return NotImplemented
        return (self.estimates, self.pairs, self.cost) == (other.estimates, other.pairs, other.cost)


def _words(name: str) -> str:
    return name.replace("_", " ")


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
        """Everything but the samples, for strict JSON; :meth:`from_dict` reads it back.

        Beside the kernels it holds the alignment matrix, if there is one, with ``None`` for what is
        not finite.
        """
        data: dict[str, Any] = {"kernels": [one.to_dict() for one in self]}
        if all("alignment" in one for one in self):
            matrix = self.alignment_matrix().tolist()
            data["alignment_matrix"] = [[x if math.isfinite(x) else None for x in row] for row in matrix]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Measurements:
        """The measurements that :meth:`to_dict` wrote, without samples.

        Raises:
            ValueError: If a field is missing or wrong, and it says of which kernel.
        """
        found = Fields(data, "measurements").sequence("kernels")
        kernels = cls()
        for index, one in enumerate(found):
            try:
                kernels.append(Measurement.from_dict(one))
            except ValueError as error:
                raise ValueError(f"kernel {index} cannot be read: {error}") from error
        return kernels
