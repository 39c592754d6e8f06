"""What is drawn: the metrics of kernels by their names, from a report or from measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ntkscope.report import Report
from ntkscope.results import Estimate, Measurement, Measurements
from ntkscope.words import SYMBOLS, title_of

__all__ = ["Numbers", "Shown", "numbers_of", "symbol_of", "title_of"]

#: What figures can be made of.
Shown = Report | Measurements | Measurement


@dataclass(frozen=True)
class Numbers:
    """Metrics of kernels.

    Attributes:
        names: Of the kernels.
        own: The metrics of one kernel, an estimate for every name.
        pairs: The metrics of two kernels, by the names of both.
    """

    names: tuple[str, ...]
    own: Mapping[str, Sequence[Estimate]]
    pairs: Mapping[str, Mapping[tuple[str, str], Estimate]]

    def matrix(self, metric: str) -> NDArray[np.float64]:
        """A metric of two kernels for all pairs; 1 on the diagonal of alignments, else nan where unknown."""
        found = np.full((len(self.names),) * 2, np.nan)
        for (one, other), estimate in self.pairs[metric].items():
            places = self.names.index(one), self.names.index(other)
            found[places] = found[places[::-1]] = estimate.value
        if metric == "alignment":
            np.fill_diagonal(found, 1.0)
        return found


def numbers_of(shown: Shown) -> Numbers:
    """The numbers of a report or of measurements; only the metrics that all kernels have."""
    if isinstance(shown, Report):
        own = {
            metric: [kernel.metrics[metric] for kernel in shown.kernels]
            for metric in shown.kernels[0].metrics
            if all(metric in kernel.metrics for kernel in shown.kernels)
        }
        aligned = {alignment.between: alignment.estimate for alignment in shown.alignments}
        pairs = {"alignment": aligned} if aligned else {}
        return Numbers(tuple(kernel.name for kernel in shown.kernels), own, pairs)
    return _of_measurements(
        Measurements([shown], ["this kernel"]) if isinstance(shown, Measurement) else shown
    )


def _of_measurements(found: Measurements) -> Numbers:
    if not found:
        raise ValueError("there is nothing to draw: the measurements hold no kernel; measure at least one")
    own = {
        metric: [one.estimates[metric] for one in found]
        for metric in found[0].estimates
        if all(metric in one.estimates for one in found)
    }
    pairs: dict[str, dict[tuple[str, str], Estimate]] = {}
    for name, one in zip(found.names, found, strict=True):
        for metric, values in one.pairs.items():
            known = pairs.setdefault(metric, {})
            for other, estimate in zip(one.others, values, strict=False):
                if other in found.names and (other, name) not in known:
                    known[name, other] = estimate
    return Numbers(found.names, own, {metric: known for metric, known in pairs.items() if known})


def symbol_of(metric: str) -> str:
    """What it is, if that is known here."""
    return SYMBOLS.get(metric, "")
