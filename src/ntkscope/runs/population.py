"""What infinitely many samples would give: terms of different samples alone (arXiv 2509.26560).

Today's effective rank (tr K)²/‖K‖² depends on the number of samples through the terms of a sample
with itself. With t_b = tr K_bb,

    Σ_{b≠b'} t_b t_b' / Σ_{b≠b'} ‖K_bb'‖²

has numerator and denominator that are unbiased for the population's, whatever the batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ntkscope.runs.moments import Moment
from ntkscope.runs.ring import Part, ProbedSamples, Ring, RingProducts
from ntkscope.runs.sample_gram import RingMoments, SampleGramRun, ring_moments

__all__ = ["POWERS", "QUANTITY", "PopulationRun", "exact_population", "population_moments"]

#: What the effective rank is made of: the moments of :func:`population_moments`.
POWERS: dict[Moment, float] = {(0,): 1, (0, 0): -1}

QUANTITY = "population_effective_rank"


def population_moments(products: RingProducts, ring: Ring, probes: int, outputs: int) -> RingMoments:
    """Σ_{b≠b'} t_b t_b' as the moment (0,), and Σ_{b≠b'} ‖K_bb'‖² as (0, 0).

    Args:
        products: The inner products of the samples' probes.
        ring: The ring.
        probes: m, of every sample.
        outputs: s, of every sample.
    """
    found = ring_moments([products], ring, probes, outputs, own=False)
    squares = found.parts[(0,)].influence
    traces = squares.mean(axis=0)
    total = float(traces.sum())
    # Probes of different samples are independent: the products of their traces have no bias.
    value = total**2 - float((traces**2).sum())
    parts: dict[Moment, Part] = {
        (0,): Part(value, 2 * (total - traces) * squares),
        (0, 0): found.parts[(0, 0)],
    }
    return dataclasses.replace(found, parts=parts)


class PopulationRun:
    """Both from a few random probes of every sample, which grow as those of the metrics do.

    Args:
        samples: The samples.
        seed: Of the probes, and of the ring.
    """

    def __init__(self, samples: ProbedSamples, *, seed: int) -> None:
        self._samples, self._seed = samples, seed
        self._probes = 0
        self._run = SampleGramRun([samples], seed=seed)
        self.stride, self.quantum, self.minimum = self._run.stride, self._run.quantum, self._run.minimum
        self.first_look = self._run.first_look

    def grow(self, products: int) -> None:
        """Pull more probes back."""
        self._run.grow(products)
        self._probes = max(self._probes, products)

    def result(self) -> RingMoments:
        """The moments so far.

        Raises:
            ValueError: If fewer than two probes have run.
        """
        if self._probes < 2:
            raise ValueError(f"the per-sample Gram needs two probes; spend {self.minimum} products or more")
        ring = Ring.of(self._samples.batch, self._probes, self._seed)
        outputs = self._samples.size // self._samples.batch
        return population_moments(self._samples, ring, self._probes, outputs)


def exact_population(samples: ProbedSamples, index: NDArray[np.int64], square: float) -> tuple[float, float]:
    """Both sums exactly, by one-hot probes of every sample.

    Args:
        samples: The samples; none drawn yet.
        index: Position in the state of every output of every sample, shape (B, s).
        square: ‖K‖²_F.
    """
    batch, outputs = index.shape
    one_hot = np.zeros((index.size, outputs), dtype=np.int8)
    one_hot[index, np.arange(outputs)] = 1
    samples.add(one_hot)
    traces, own = np.zeros(batch), 0.0
    for _, start, tile in samples.ring(np.arange(batch), 1, (0,), 1 << 20):
        blocks = tile[:, 0, :, 0, :]
        traces[start : start + len(blocks)] = np.einsum("bii->b", blocks)
        own += float((blocks**2).sum())
    return float(traces.sum()) ** 2 - float((traces**2).sum()), square - own
