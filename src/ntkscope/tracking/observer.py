"""Looking at a kernel: from a model at one moment to its numbers and its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ntkscope.fingerprints import Fingerprint
from ntkscope.ntk import NTK
from ntkscope.results import Cost, Estimate
from ntkscope.tracking.metrics import Moment, check_watched, numbers
from ntkscope.tracking.targets import Targets

__all__ = ["Observer"]


class Observer:
    """Measures the kernel of one state at one moment after another.

    Args:
        metrics: Which numbers.
        targets: y, see :meth:`ntkscope.tracking.targets.Targets.of`.
        by: ``"layer"`` measures every layer's part too.
        probes: Random signs of every sample.
        seed: Of the probes.

    Attributes:
        first: The fingerprint at the start.
        last: That of the look before.

    Raises:
        ValueError: For an unknown metric.
    """

    def __init__(self, metrics: Sequence[str], targets: Any, by: str | None, probes: int, seed: int) -> None:
        self.metrics = check_watched(metrics)
        self.first: Fingerprint | None = None
        self.last: Fingerprint | None = None
        self._given = targets
        self._targets: Targets | None = None
        self._by, self._probes, self._seed = by, probes, seed

    def measure(
        self, kernel: NTK, model: nn.Module
    ) -> tuple[Mapping[str, Estimate], Mapping[str, Mapping[str, Estimate]], Cost, Fingerprint]:
        """The numbers of the kernel and of its layers, what they cost, and the fingerprint.

        What is the start and the look before stays as it was: :meth:`keep` moves on.
        """
        before = kernel.cost
        now = kernel.fingerprint(self._probes, self._seed, self._by)
        pulls: Mapping[str, float] = {}
        if self._given is not None and "target_alignment" in self.metrics:
            self._targets = self._targets or Targets.of(self._given, kernel)
            pulls = self._targets.pull(kernel, model)
        whole = numbers(self.metrics, self._moment(now, pulls.get(""), None))
        layers = {
            layer: numbers(self.metrics, self._moment(now, pulls.get(layer), layer)) for layer in now.layers
        }
        spent = kernel.cost
        cost = Cost(spent.products - before.products, spent.vjps - before.vjps, spent.jvps - before.jvps)
        return whole, layers, cost, now

    def keep(self, fingerprint: Fingerprint) -> None:
        """Makes it the look before, and the start if it is the first."""
        self.first = self.first or fingerprint
        self.last = fingerprint

    def _moment(self, now: Fingerprint, pull: float | None, layer: str | None) -> Moment:
        def part(one: Fingerprint | None) -> Fingerprint | None:
            return one if one is None or layer is None else one[layer]

        cost = Cost(1, 1, 0) if pull is not None else Cost()
        return Moment(now if layer is None else now[layer], part(self.first), part(self.last), pull, cost)
