"""The metrics of several kernels, by the kernels' names, and the alignment of every pair."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from ntkscope.results.estimate import Estimate
from ntkscope.results.frames import frame
from ntkscope.results.measurement import Measurement
from ntkscope.results.plain import Fields

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Measurements", "named_kernels"]


def named_kernels(kernels: Any) -> tuple[list[Any], tuple[str, ...]]:
    """Kernels and their names, of a mapping of them by name; of a list without names.

    Raises:
        TypeError: If a name is not a text.

    >>> named_kernels({"init": 1, "trained": 2})
    ([1, 2], ('init', 'trained'))
    """
    if not isinstance(kernels, Mapping):
        return list(kernels), ()
    for name in kernels:
        if not isinstance(name, str):
            raise TypeError(f"names of kernels must be texts, found {name!r}; use str({name!r})")
    return list(kernels.values()), tuple(kernels)


class Measurements(list[Measurement]):
    """The metrics of several kernels, and the alignment of every pair.

    A list with one :class:`Measurement` a kernel, which can be had by the kernel's name too; the
    ``alignment`` of each lists the other kernels in order.

    Args:
        found: One measurement a kernel.
        names: Of the kernels; ``"kernel 0"`` and so on where there are none.

    Raises:
        ValueError: If there are not as many names as kernels, or one stands twice.

    >>> pair = {"alignment": [Estimate(0.5, 0.0)]}
    >>> found = Measurements([Measurement({}, pair), Measurement({}, pair)], ["init", "trained"])
    >>> [name for name, _ in found["init"].rows()]
    ['alignment with trained']
    """

    def __init__(self, found: Iterable[Measurement] = (), names: Sequence[str] = ()) -> None:
        kernels = list(found)
        known = tuple(names) or tuple(f"kernel {index}" for index in range(len(kernels)))
        if len(known) != len(kernels):
            raise ValueError(f"found {len(known)} names for {len(kernels)} kernels; give one for each")
        twice = sorted({name for name in known if known.count(name) > 1})
        if twice:
            raise ValueError(f"two kernels are named {twice[0]!r}; give each a name of its own")
        self._names = known
        super().__init__(_with_others(one, [*known[:i], *known[i + 1 :]]) for i, one in enumerate(kernels))

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels' names."""
        return self._names

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Measurement: ...
    @overload
    def __getitem__(self, key: slice) -> list[Measurement]: ...
    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self._names:
            raise KeyError(f"no kernel is named {key!r}; the kernels are {', '.join(self._names) or 'none'}")
        return super().__getitem__(self._names.index(key))

    def named(self, names: Sequence[str]) -> Measurements:
        """The same measurements with other names of the kernels; with the usual ones if there are none."""
        return Measurements((dataclasses.replace(one, others=()) for one in self), names)

    # Every pair.

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

    # For people.

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame`` with a row for every metric of every kernel, and of every pair.

        Its columns are ``kernel``, ``metric``, ``other`` (the other kernel of a metric of two),
        ``value``, ``stderr``, ``low95``, ``high95``, ``method``, ``converged``, ``seed`` and ``note``;
        ``.pivot(index="kernel", columns="metric", values="value")`` of those without an ``other``
        gives a row for every kernel.

        Raises:
            ImportError: If pandas is not installed.
        """
        return frame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """The rows of :meth:`to_pandas`, without pandas."""
        return [
            {"kernel": name, **row}
            for name, one in zip(self._names, self, strict=True)
            for row in one.records()
        ]

    def __str__(self) -> str:
        return "\n\n".join(f"{name}\n{one}" for name, one in zip(self._names, self, strict=True))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = zip(self._names, self, strict=True)
        return "".join(f"<p>{html.escape(name)}</p>{one._repr_html_()}" for name, one in parts)

    # For files.

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, for strict JSON; :meth:`from_dict` reads it back.

        Beside the kernels and their names it holds the alignment matrix, if there is one, with
        ``None`` for what is not finite.
        """
        data: dict[str, Any] = {"names": list(self._names), "kernels": [one.to_dict() for one in self]}
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
        fields = Fields(data, "measurements")
        kernels: list[Measurement] = []
        for index, one in enumerate(fields.sequence("kernels")):
            try:
                kernels.append(Measurement.from_dict(one))
            except ValueError as error:
                raise ValueError(f"kernel {index} cannot be read: {error}") from error
        # What earlier versions wrote has no names.
        return cls(kernels, fields.texts("names") if "names" in data else ())


def _with_others(one: Measurement, others: Sequence[str]) -> Measurement:
    """The measurement with the names of the other kernels, where its pairs are with all of them."""
    if one.others or not one.pairs or any(len(found) != len(others) for found in one.pairs.values()):
        return one
    return dataclasses.replace(one, others=others)
