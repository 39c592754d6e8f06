"""Ways to a partial trace P[a, a′] = Σ_c K[(a, c), (a′, c)], and their costs.

**Reverse**: a probe has random signs s over the traced axes and one kept index a; since E ssᵀ = I,
E ⟨Jᵀ(e_a ⊗ s), Jᵀ(e_a′ ⊗ s)⟩ = P[a, a′]. Kept samples go back together: keeping the samples alone takes
one backward pass a probe. Traced samples have signs of their own, and no terms between them. With every
one-hot vector in the place of the signs it is exact.

**Forward**: with Y = Ju of a random direction u laid out as (kept, traced), E YYᵀ = P. Where samples are
traced over, each has a direction of its own.

A contraction with ones in the place of signs would keep the terms with c ≠ c′.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.base import Engine, Machine, Refusal, Samples, Sizes
from ntkscope.operators.probes import random_signs, sphere_probes
from ntkscope.operators.space import Small
from ntkscope.runs.arrays import ArraySamples
from ntkscope.ways.axes import Axes, SampleRows
from ntkscope.ways.costs import jvp_seconds, per_sample_seconds, vjp_seconds
from ntkscope.ways.per_sample import PerSampleForward

__all__ = ["PARTIAL_METHODS", "RANDOM_WAYS", "Forward", "OneHot", "PartialProblem", "PartialWay", "RandomWay"]

_STREAM = 24
_FORWARD_STREAM = 25
#: As a caller names them.
PARTIAL_METHODS = ("auto", "exact", "reverse", "forward")
# One probe's relative variance of P, as a guess for plans; samples that are traced over divide it.
_VARIANCE = 0.3
_FEWEST = 8
# Probes of one-hot vectors that are pulled back at once.
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class PartialProblem:
    """What is kept of which kernel.

    Attributes:
        engine: The model.
        axes: What is kept.
        samples: The model's samples, or why there are none.
        inside: How the axes lie in the samples; all of the state as one sample where there are none.
    """

    engine: Engine
    axes: Axes
    samples: Samples | Refusal
    inside: SampleRows

    @classmethod
    def of(cls, engine: Engine, axes: Axes) -> PartialProblem:
        """Looks for samples."""
        samples = engine.samples()
        index = np.arange(engine.shape[0])[None] if isinstance(samples, Refusal) else samples.state_index()
        return cls(engine, axes, samples, SampleRows.of(axes, index))

    @property
    def rows(self) -> int:
        """Kept entries of one sample, or all of them: backward passes a probe."""
        return len(self.inside.rows)

    @property
    def has_samples(self) -> bool:
        """Whether there are samples that are treated on their own."""
        return not isinstance(self.samples, Refusal)

    @property
    def parts(self) -> int:
        """Independent parts of one random estimate: the samples, where they are traced over."""
        return 1 if self.inside.across or not self.has_samples else len(self.inside.columns[0])

    @property
    def has_directions(self) -> bool:
        """Whether samples have directions of their own in forward products."""
        return self.parts > 1 and not self.engine.sizes().no_directions

    def probes_for(self, rtol: float) -> int:
        """Probes that a tolerance is expected to take."""
        return max(_FEWEST, math.ceil(_VARIANCE / self.parts / rtol**2))


class PartialWay(Protocol):
    """One way to a partial trace.

    Attributes:
        name: As in a result's ``method``.
        method: What a caller asks for to get it.
        is_exact: Whether its result is exact.
    """

    name: str
    method: str
    is_exact: bool

    def why_not(self, problem: PartialProblem) -> str:
        """Why it cannot be taken; empty if it can."""
        ...

    def words(self, problem: PartialProblem, rtol: float) -> str:
        """What it does, for plans."""
        ...

    def seconds(self, problem: PartialProblem, sizes: Sizes, machine: Machine, probes: int) -> float:
        """Predicted time of so many probes; an exact way takes what it takes."""
        ...

    def cost(self, problem: PartialProblem) -> int:
        """Products of one probe, or of all."""
        ...


class RandomWay(PartialWay, Protocol):
    """One that draws probes."""

    def draw(self, problem: PartialProblem, seed: int) -> ArraySamples:
        """Independent unbiased estimates of P, (stop - start, A, A)."""
        ...


class OneHot:
    """Every one-hot vector over the traced axes: exact."""

    name, method, is_exact = "exact", "exact", True

    def why_not(self, problem: PartialProblem) -> str:
        """It needs no structure."""
        return _too_large(problem)

    def words(self, problem: PartialProblem, rtol: float) -> str:
        """For plans."""
        return f"{self.cost(problem):,} one-hot probes"

    def seconds(self, problem: PartialProblem, sizes: Sizes, machine: Machine, probes: int) -> float:
        """A backward pass for every kept and traced entry of one sample."""
        return _reverse_seconds(problem, sizes, machine, len(problem.inside.columns))

    def cost(self, problem: PartialProblem) -> int:
        """All of its products."""
        return problem.rows * len(problem.inside.columns)

    def matrix(self, problem: PartialProblem, report: Callable[[int, int], None]) -> Small:
        """P itself."""
        table, inside, samples = problem.axes.table, problem.inside, problem.samples
        if isinstance(samples, Refusal):
            return self._whole(problem, report)
        # The number of an output in its sample; those of the first one speak for all.
        number = np.empty(samples.state_index().size, dtype=np.int64)
        number[samples.state_index()] = np.arange(samples.outputs)
        outputs = number[table[inside.rows[:, :1], inside.columns[:, :1].T]]
        found = samples.output_grams(outputs, across=inside.across, report=report)
        size = problem.axes.size
        return _in_order(found.reshape(1, size, size), inside)[0]

    def _whole(self, problem: PartialProblem, report: Callable[[int, int], None]) -> Small:
        """By rows of the whole J, some traced entries at a time."""
        count, rows = problem.axes.traced, problem.rows
        step = max(1, _AT_ONCE // rows)
        total = np.zeros((rows, rows))
        for start in range(0, count, step):
            stop = min(start + step, count)
            w = np.zeros((count, stop - start), dtype=np.int8)
            w[np.arange(start, stop), np.arange(stop - start)] = 1
            total += _pulled(problem, w).sum(axis=0)
            report(stop, count)
        return total


class Reverse:
    """Random signs over the traced axes, for every kept entry."""

    name, method, is_exact = "reverse", "reverse", False

    def why_not(self, problem: PartialProblem) -> str:
        """The gradients of all kept entries are held at once."""
        return _too_large(problem)

    def words(self, problem: PartialProblem, rtol: float) -> str:
        """For plans."""
        count = problem.probes_for(rtol)
        return f"about {count:,} probes of signs, {problem.rows:,} backward passes each"

    def seconds(self, problem: PartialProblem, sizes: Sizes, machine: Machine, probes: int) -> float:
        """A backward pass for every kept entry of one sample."""
        return _reverse_seconds(problem, sizes, machine, probes)

    def cost(self, problem: PartialProblem) -> int:
        """VJPs a probe."""
        return problem.rows

    def draw(self, problem: PartialProblem, seed: int) -> ArraySamples:
        """The same signs for every kept entry."""

        def draw(start: int, stop: int) -> Small:
            # Columns of signs depend on their numbers alone, so that steps change nothing.
            step = max(1, _AT_ONCE // problem.rows)
            parts = []
            for first in range(start, stop, step):
                last = min(first + step, stop)
                signs = random_signs(problem.axes.traced, first, last, seed=seed, stream=_STREAM)
                parts.append(_pulled(problem, signs))
            return np.concatenate(parts)

        return draw


class Forward:
    """Random directions over the parameters: the state's own motion, laid out as a matrix."""

    name, method, is_exact = "forward", "forward", False

    def why_not(self, problem: PartialProblem) -> str:
        """Only trying tells whether there is a forward mode."""
        return ""

    def words(self, problem: PartialProblem, rtol: float) -> str:
        """For plans."""
        return f"about {problem.probes_for(rtol):,} forward products"

    def seconds(self, problem: PartialProblem, sizes: Sizes, machine: Machine, probes: int) -> float:
        """A forward product and a product of the state with itself."""
        contracted = machine.seconds(2.0 * probes * problem.axes.size * sizes.n, 0, 0)
        if problem.has_directions:
            return contracted + probes * PerSampleForward().product_seconds(sizes, machine)
        return contracted + jvp_seconds(sizes, machine, probes)

    def cost(self, problem: PartialProblem) -> int:
        """JVPs a probe."""
        return 1

    def draw(self, problem: PartialProblem, seed: int) -> ArraySamples:
        """YYᵀ of every direction."""
        engine, samples, table = problem.engine, problem.samples, problem.axes.table

        def states(start: int, stop: int) -> Small:
            if isinstance(samples, Refusal) or not problem.has_directions:
                size = engine.shape[1]
                u = sphere_probes(size, start, stop, seed=seed, stream=_FORWARD_STREAM)
                return np.asarray(engine.map() @ u, dtype=np.float64).T
            size, batch = samples.direction_size, samples.batch

            def drawn(probe: int, part: range) -> NDArray[np.float64]:
                # A column for every probe and sample, whatever the chunks.
                first = (start + probe) * batch
                columns = (first + part.start, first + part.stop)
                return sphere_probes(size, *columns, seed=seed, stream=_FORWARD_STREAM).T

            def directions(probes: range, part: range) -> NDArray[np.float64]:
                return np.stack([drawn(probe, part) for probe in probes])

            return samples.forward(stop - start, directions)

        def draw(start: int, stop: int) -> Small:
            laid_out = states(start, stop)[:, table]
            found: Small = laid_out @ laid_out.swapaxes(1, 2)
            return found

        return draw


#: Those that draw probes.
RANDOM_WAYS: tuple[RandomWay, ...] = (Reverse(), Forward())


def _pulled(problem: PartialProblem, weights: NDArray[np.int8]) -> Small:
    """⟨Jᵀ(e_a ⊗ w), Jᵀ(e_a′ ⊗ w)⟩ for weights w over the traced axes, (C, k), to (k, A, A)."""
    table, inside, rows, samples = problem.axes.table, problem.inside, problem.rows, problem.samples
    count = weights.shape[1]
    block = np.zeros((problem.engine.shape[0], count, rows), dtype=np.int8)
    for row, entries in enumerate(inside.rows):
        # One kept entry of every sample, or the one of all samples.
        block[table[entries], :, row] = weights
    probes = block.reshape(len(block), -1)
    if isinstance(samples, Refusal):
        pulled = np.asarray(problem.engine.map().T @ probes.astype(np.float64), dtype=np.float64)
        x = pulled.reshape(len(pulled), count, rows).transpose(1, 2, 0)
        products: Small = x @ x.swapaxes(1, 2)
        return products
    grams = samples.grams(probes, rows, across=inside.across)
    return _in_order(grams.reshape(count, problem.axes.size, -1), inside)


def _in_order(grams: Small, inside: SampleRows) -> Small:
    """Matrices over rows and samples, (k, A, A), in the order of the kept axes."""
    order = inside.rows.reshape(-1)
    found = np.empty_like(grams)
    found[:, order[:, None], order] = grams
    return found


def _reverse_seconds(problem: PartialProblem, sizes: Sizes, machine: Machine, probes: int) -> float:
    count = probes * problem.rows
    if not problem.has_samples:
        passes = vjp_seconds(sizes, machine, count)
        return passes + machine.seconds(2.0 * count * problem.rows * sizes.p, 0, 0)
    partners = problem.rows * (sizes.batch if problem.inside.across else 1)
    work = 2.0 * count * sizes.batch * (partners) * min(sizes.p, sizes.taps + sizes.general)
    return per_sample_seconds(sizes, machine, count, 1) + machine.seconds(work, 0, 0)


def _too_large(problem: PartialProblem) -> str:
    """Why the gradients of all kept entries cannot be held together; empty if they can."""
    sizes = problem.engine.sizes()
    if problem.has_samples:
        samples = sizes.batch if problem.inside.across else 1
        each = 3 * sizes.taps + sizes.general + sizes.p
        held = sizes.itemsize * problem.rows * samples * each
    else:
        held = 8 * problem.rows * sizes.p
    if held <= sizes.budget:
        return ""
    return "the gradients of all kept entries do not fit the memory budget together"
