"""Traces from random probes of every sample on its own: no noise between samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.base import Machine, Samples, Sizes
from ntkscope.operators.probes import normal_probes, sphere_probes
from ntkscope.progress import ProgressListener
from ntkscope.runs.group import MappedRun
from ntkscope.runs.hutchinson import HutchinsonRun
from ntkscope.runs.sample_gram import SampleGramRun
from ntkscope.runs.sources import IndependentMoments
from ntkscope.ways.base import NeedsSamples, Problem, Start, per_sample_of
from ntkscope.ways.costs import growth_of, per_sample_seconds

__all__ = ["STREAM", "PerSample", "PerSampleForward", "PerSampleGram", "gram_bytes"]

#: Of the probes of a trace, whose parts a split has.
STREAM = 20
_FORWARD_STREAM = 21

# Of the probes that are drawn at once: a language model's state may have tens of millions.
_NUMBERS = 1 << 23
# Samples of a batch tell more of the error, but one of them may make the trace alone.
_FIRST_LOOK = 4
# Probes that the trace is expected to need for 1%.
_PROBES_FOR_ONE_PERCENT = 8


def _probes(rtol: float) -> int:
    return math.ceil(_PROBES_FOR_ONE_PERCENT * growth_of(rtol))


class _PerSampleTrace(NeedsSamples):
    """What the trace and its forward twin share: a mean of sums over samples."""

    name = method = ""
    is_exact = False

    def is_automatic(self, of_products: bool) -> bool:
        """Wherever it is the cheapest."""
        return True

    def serves(self, of_products: bool) -> bool:
        """Traces alone."""
        return not of_products

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, for the trace of one kernel."""
        (samples,) = per_sample_of(problem, self.method)
        run = self.trace_run(samples, problem.maps[0].shape[0], seed, problem.maps[0].epsilon)
        return Start(MappedRun(run, lambda trace: IndependentMoments({(0,): trace})))

    def trace_run(self, samples: Samples, n: int, seed: int, epsilon: float) -> HutchinsonRun:
        """The trace alone, as a run."""
        raise NotImplementedError


class PerSample(_PerSampleTrace):
    """Hutchinson's trace with an independent probe for every sample: tr K = Σ_b E‖J_bᵀz_b‖².

    z_b is uniform on the sphere of radius √s, s the outputs of a sample. The probes' cross-terms
    between samples, which only add noise, are never formed: the variance falls from
    2(‖K‖²_F − tr²K/n) to 2s/(s+2) Σ_b(‖K_bb‖²_F − tr²K_bb/s), which is 0 for one output, and less
    where outputs that are 0 (of a ReLU, say) have a sphere of their own. Few probes of a batch tell it
    already, since every sample shows its own part of it.
    """

    name = method = "per-sample"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"random probes for every sample, about {_probes(rtol):,} for {rtol:.2g}"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """A backward pass a probe, all of them in one forward pass."""
        return per_sample_seconds(sizes, machine, _probes(rtol), 1)

    def product_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """A backward pass of the batch beside others."""
        return (per_sample_seconds(sizes, machine, 64, 1) - self.start_seconds(sizes, machine)) / 64

    def start_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """The forward pass that all probes share."""
        return per_sample_seconds(sizes, machine, 0, 1)

    def trace_run(self, samples: Samples, n: int, seed: int, epsilon: float) -> HutchinsonRun:
        """The trace alone, as a run."""
        step = max(1, _NUMBERS // n)

        def draw(start: int, stop: int) -> NDArray[np.float64]:
            parts = [(first, min(first + step, stop)) for first in range(start, stop, step)]
            probes = (normal_probes(n, *part, seed=seed, stream=STREAM) for part in parts)
            return np.concatenate([samples.squares(some) for some in probes])

        return HutchinsonRun(draw, method=self.name, seed=seed, epsilon=epsilon, first_look=_FIRST_LOOK)


class PerSampleForward(_PerSampleTrace):
    """Its forward twin, with a parameter direction for every sample: tr K = Σ_b E‖J_b u_b‖².

    The variance is 2p/(p+2) Σ_b(‖K_bb‖²_F − tr²K_bb/p).
    """

    def why_not(self, problem: Problem) -> str:
        """An engine may have no forward products."""
        reason, sizes = super().why_not(problem), problem.sizes
        return reason or ("" if sizes is None else sizes.no_products or sizes.no_directions)

    name = method = "per-sample-forward"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"random parameter directions for every sample, about {_probes(rtol):,} for {rtol:.2g}"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """A forward pass whose tangents take two products a layer, one with the sample's own direction."""
        return self._seconds(sizes, machine, _probes(rtol))

    def product_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """The tangents of one probe beside others."""
        return (self._seconds(sizes, machine, 64) - self.start_seconds(sizes, machine)) / 64

    def start_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """The forward pass that all probes share, and the check of forward mode."""
        return self._seconds(sizes, machine, 0)

    def _seconds(self, sizes: Sizes, machine: Machine, probes: int) -> float:
        tangents = probes * sizes.batch * sizes.p
        chunk_bytes = sizes.itemsize * probes * (2 * sizes.batch * sizes.p + 3 * sizes.elements)
        passes = math.ceil(chunk_bytes / max(sizes.budget, 1))
        # Directions are drawn and turned into numbers, and every use of a parameter reads its direction.
        written = (
            probes * 3 * sizes.elements * sizes.spread + 3 * tangents + probes * sizes.batch * sizes.used
        )
        # Before the first probes, forward mode is checked by one product and its transpose.
        calls = 4 * sizes.operations * (passes + 1)
        return machine.seconds(
            sizes.flops * (5 + 2.0 * probes * sizes.spread), 3 * sizes.elements + written, calls
        )

    def trace_run(self, samples: Samples, n: int, seed: int, epsilon: float) -> HutchinsonRun:
        """The trace alone, as a run.

        Raises:
            ValueError: If the model has no forward mode.
        """
        size, batch = samples.direction_size, samples.batch

        def draw(start: int, stop: int) -> NDArray[np.float64]:
            def directions(probes: range, part: range) -> NDArray[np.float64]:
                # A column for every probe and sample, whatever the chunks.
                columns = [
                    sphere_probes(
                        size,
                        (start + probe) * batch + part.start,
                        (start + probe) * batch + part.stop,
                        seed=seed,
                        stream=_FORWARD_STREAM,
                    ).T
                    for probe in probes
                ]
                return np.stack(columns)

            return samples.forward_squares(stop - start, directions)

        return HutchinsonRun(draw, method=self.name, seed=seed, epsilon=epsilon, first_look=_FIRST_LOOK)


class PerSampleGram(NeedsSamples):
    """Every moment from the inner products of a few random probes of every sample."""

    name = method = "per-sample"
    is_exact = False

    def is_automatic(self, of_products: bool) -> bool:
        """Wherever it is the cheapest."""
        return True

    def serves(self, of_products: bool) -> bool:
        """All moments; a trace alone needs no inner products."""
        return of_products

    def why_not(self, problem: Problem) -> str:
        """The gradients of all samples are kept at once."""
        sizes = problem.sizes
        if sizes is not None and gram_bytes(sizes, self._gram_probes(sizes, problem.rtol)) > sizes.budget:
            return "the gradients of all samples do not fit the memory budget together"
        return super().why_not(problem)

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"inner products of about {self._gram_probes(sizes, rtol):,} random probes of every sample"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """A backward pass a probe and kernel, and a ring of inner products."""
        probes = self._gram_probes(sizes, rtol)
        partners = min(sizes.batch, 16 * (1 + probes))
        entries = sizes.batch * partners * probes**2
        pairs = machine.seconds(2.0 * entries * (sizes.taps + sizes.general), 3.0 * entries * sizes.pieces, 0)
        return sizes.kernels * (per_sample_seconds(sizes, machine, probes, 1) + pairs)

    def product_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """A backward pass of the batch beside others, with its inner products."""
        return self.seconds(sizes, machine, 0.01) / sizes.kernels / self._gram_probes(sizes, 0.01)

    def start_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """Its passes carry their share of the forward pass."""
        return 0.0

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run."""
        samples = per_sample_of(problem, self.method)
        return Start(SampleGramRun([one.probed() for one in samples], seed=seed))

    @staticmethod
    def _gram_probes(sizes: Sizes, rtol: float) -> int:
        """The error falls with the samples as with the probes: some 250 of both together give 1%."""
        return max(4, math.ceil(250 / max(sizes.batch, 1) * growth_of(rtol)))


def gram_bytes(sizes: Sizes, probes: int) -> float:
    """What the gradients of the samples that are held together take for so many probes."""
    held = sizes.held or sizes.batch
    each = 3 * held * (sizes.taps + sizes.general) * probes
    return sizes.itemsize * (3 * sizes.elements * held / sizes.batch + each)
