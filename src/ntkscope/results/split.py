"""A number of a kernel in parts, and the alignments of the parts' kernels."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ntkscope.results.array import ArrayEstimate
from ntkscope.results.estimate import Cost, Estimate
from ntkscope.results.plain import Fields

__all__ = ["PartAlignments", "Split"]


@dataclass(frozen=True, eq=False, repr=False)
class Split(Mapping[str, Estimate]):
    """A number of every part of a kernel: a mapping of the parts' names.

    Attributes:
        parts: By name, in the order of the parameters, samples or outputs.
        whole: The number of the whole kernel from the same products, where parts add up to it (the trace);
            else ``None``.
        quantity: Such as ``"trace"``.
        by: What the parts are.
        cost: Of all of them together.
    """

    parts: Mapping[str, Estimate]
    whole: Estimate | None = None
    quantity: str = "trace"
    by: str = "layer"
    cost: Cost = field(default_factory=Cost)

    def __getitem__(self, name: str) -> Estimate:
        if name not in self.parts:
            raise KeyError(f"no part is named {name!r}; the parts are {', '.join(self.parts)}")
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def shares(self) -> dict[str, float]:
        """What share of the whole each part is.

        Raises:
            ValueError: If the parts do not add up to a whole.
        """
        if self.whole is None:
            raise ValueError(f"the parts of a {self.quantity} do not add up to the whole; split the trace")
        total = self.whole.value or 1.0
        return {name: part.value / total for name, part in self.parts.items()}

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Name, value with its error, and share of the whole (empty where there is none)."""
        shares = {} if self.whole is None else self.shares()
        for name, part in self.parts.items():
            share = f"{100 * shares[name]:.3g}%" if name in shares else ""
            yield name, part.value_text(), share

    def table(self) -> str:
        """A line a part, and one for the whole."""
        rows = list(self.rows())
        if self.whole is not None:
            rows.append(("whole", self.whole.value_text(), ""))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        return f"{self.quantity.replace('_', ' ')} by {self.by} ({self.cost})\n{self.table()}"

    def _repr_html_(self) -> str:
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows()]
        lines = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table><caption>{html.escape(self.quantity.replace('_', ' '))}</caption>{lines}</table>"

    def to_dict(self) -> dict[str, Any]:
        """All of it, for strict JSON; :meth:`from_dict` reads it back."""
        return {
            "quantity": self.quantity,
            "by": self.by,
            "parts": {name: part.to_dict() for name, part in self.parts.items()},
            "whole": None if self.whole is None else self.whole.to_dict(),
            "cost": self.cost.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Split:
        """What :meth:`to_dict` wrote.

        Raises:
            ValueError: If a field is missing or wrong.
        """
        fields = Fields(data, "a split")
        parts, whole = fields.get("parts"), fields.get("whole")
        if not isinstance(parts, Mapping):
            raise ValueError(f"a split has its parts by name, found {type(parts).__name__}")
        return cls(
            {name: Estimate.from_dict(part) for name, part in parts.items()},
            None if whole is None else Estimate.from_dict(whole),
            fields.text("quantity"),
            fields.text("by"),
            Cost.from_dict(fields.get("cost")),
        )


@dataclass(frozen=True, eq=False, repr=False)
class PartAlignments(ArrayEstimate):
    """cos(K_a, K_b) of the kernels of parts: rows of one kernel, columns of it or of another one.

    Attributes:
        rows: Names of the parts.
        columns: The same, of the other kernel.
    """

    quantity: str = "alignment"
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields, for strict JSON; :meth:`from_dict` reads it back."""
        return {**super().to_dict(), "rows": list(self.rows), "columns": list(self.columns)}

    @classmethod
    def _own_fields(cls, fields: Fields) -> dict[str, Any]:
        return {"rows": tuple(fields.sequence("rows")), "columns": tuple(fields.sequence("columns"))}
