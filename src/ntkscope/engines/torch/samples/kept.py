"""Sums over many passes that are kept in a file as they grow, where a run is kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ntkscope.journal import begin

__all__ = ["KeptSums"]


class KeptSums:
    """A number for every sample, summed up in steps.

    Args:
        name: Of the work.
        batch: Number of samples.
    """

    def __init__(self, name: str, batch: int) -> None:
        self._task = begin(name)
        self._batch = batch
        self._portions = (0, 0)
        self._has_begun = False

    def begin(self, portions: tuple[int, int]) -> tuple[tuple[int, int], int, NDArray[np.float64]]:
        """How much to do at once, how many steps are done, and the sums by then.

        Args:
            portions: Samples and probes at once; others if those of the file were others, and after a
                second call, where memory has run out, all is done again.
        """
        known = None if self._task is None or self._has_begun else self._task.known
        self._has_begun, self._portions = True, portions
        if known is None:
            return portions, 0, np.zeros(self._batch)
        samples, probes = known["portions"].tolist()
        self._portions = samples, probes
        return self._portions, int(known["steps"]), known["sums"].copy()

    def keep(self, steps: int, sums: Tensor, *, last: bool = False) -> None:
        """Keeps the sums after so many steps, if it is time to, or after the last one."""
        if self._task is None or not (last or self._task.is_due()):
            return
        known = {"portions": np.array(self._portions), "steps": np.array(steps), "sums": sums.cpu().numpy()}
        self._task.save(known, done=last)
