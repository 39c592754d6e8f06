"""An engine whose kernel is centred over the samples, for every way that goes by products."""

from __future__ import annotations

import dataclasses
from typing import Any

from ntkscope.engines.base import Engine, Refusal, Samples, Sizes
from ntkscope.operators.centered import CenteredMap, Centre, centre_over

__all__ = ["CenteredEngine"]


class CenteredEngine:
    """The same model with J_b - mean_b J_b in the place of J_b, K_c = H K H.

    Args:
        engine: Of the model.
        samples: Its samples.
    """

    def __init__(self, engine: Engine, samples: Samples) -> None:
        self._engine = engine
        self.ledger, self.budget = engine.ledger, engine.budget
        self.centre: Centre = centre_over(samples.state_index())

    def __getattr__(self, name: str) -> Any:
        # What centring does not change: shapes, dtype, session, machine.
        return getattr(self._engine, name)

    def map(self) -> CenteredMap:
        """H J, shape (n, p)."""
        return CenteredMap(self._engine.map(), None, self.centre)

    def kernel_map(self) -> CenteredMap:
        """H K H."""
        return CenteredMap(self._engine.kernel_map(), self.centre, self.centre)

    def dense(self) -> Any:
        """H K H itself, shape (n, n), as an array of the framework."""
        return self.centre(self.centre(self._engine.dense()).T)

    def samples(self) -> Refusal:
        """There are none."""
        return Refusal("centring couples them")

    def sizes(self, kernels: int = 1) -> Sizes:
        """Counts of the batch as a whole."""
        sizes = self._engine.sizes(kernels)
        return dataclasses.replace(
            sizes, batch=1, outputs=sizes.n, taps=0, gradient_flops=0.0, used=0, general=0, pieces=1
        )
