"""One look at the kernel: its numbers at one step of training, and as a line of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ntkscope.results import Cost, Estimate
from ntkscope.results.plain import Fields, plain_numbers

__all__ = ["Look"]


@dataclass(frozen=True)
class Look:
    """The numbers of one moment of training.

    Attributes:
        step: Optimiser steps that had been taken.
        metrics: Estimates by name.
        layers: The same of every layer, where layers were kept apart.
        values: Plain numbers that came with it, such as the loss.
        training: Seconds of training so far, without the looks.
        cost: Products and seconds of this look.
        fingerprint: File of the fingerprint, relative to the log's folder; ``None`` if it is not kept.
    """

    step: int
    metrics: Mapping[str, Estimate]
    layers: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    training: float = 0.0
    cost: Cost = field(default_factory=Cost)
    fingerprint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON; :meth:`from_dict` reads them back."""
        return {
            "step": self.step,
            "metrics": _plain(self.metrics),
            "layers": {layer: _plain(metrics) for layer, metrics in self.layers.items()},
            "values": plain_numbers(**self.values),
            "training": self.training,
            "cost": self.cost.to_dict(),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Look:
        """The look that :meth:`to_dict` wrote.

        Raises:
            ValueError: If a field is missing or wrong.
        """
        fields = Fields(data, "a look")
        values = Fields(fields.get("values"), "the values of a look")
        names = [name for name in fields.get("values") if name != "not_finite"]
        layers = fields.get("layers")
        if not isinstance(layers, Mapping):
            raise ValueError("a look has layers that are no dict; pass a record of a tracker's log")
        return cls(
            step=fields.whole("step"),
            metrics=_estimates(fields.get("metrics")),
            layers={str(layer): _estimates(metrics) for layer, metrics in layers.items()},
            values={name: values.number(name) for name in names},
            training=fields.number("training"),
            cost=Cost.from_dict(fields.get("cost")),
            fingerprint=None if fields.get("fingerprint") is None else fields.text("fingerprint"),
        )

    def flat(self, prefix: str = "ntk/") -> dict[str, float]:
        """All numbers by one name each, for loggers that take a dict of them.

        >>> Look(10, {"trace": Estimate(3.0, 0.5)}, {"0": {"trace": Estimate(1.0)}}).flat()
        {'step': 10, 'ntk/trace': 3.0, 'ntk/trace/stderr': 0.5, 'ntk/0/trace': 1.0}
        """
        found: dict[str, float] = {"step": self.step}
        for layer, metrics in [("", self.metrics), *self.layers.items()]:
            for name, estimate in metrics.items():
                key = f"{prefix}{layer}/{name}" if layer else f"{prefix}{name}"
                found[key] = estimate.value
                if estimate.stderr is not None:
                    found[f"{key}/stderr"] = estimate.stderr
        return found


def _plain(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_dict() for name, estimate in metrics.items()}


def _estimates(data: Any) -> dict[str, Estimate]:
    if not isinstance(data, Mapping):
        raise ValueError("a look has metrics that are no dict; pass a record of a tracker's log")
    return {str(name): Estimate.from_dict(value) for name, value in data.items()}
