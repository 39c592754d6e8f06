"""Exact ways: one-hot probes of every sample, tiles of K, rows of J, JᵀJ, or every column of K."""

from __future__ import annotations

import math
from collections.abc import Callable

from ntkscope.engines.base import Machine, Sizes
from ntkscope.progress import ProgressListener
from ntkscope.results import Estimate
from ntkscope.runs.drive import Run
from ntkscope.runs.exact import ExactFactorRun, ExactRun
from ntkscope.runs.group import MappedRun, Once
from ntkscope.runs.moments import Moments, MomentSource
from ntkscope.runs.rows import parameter_moments, row_moments
from ntkscope.runs.sources import IndependentMoments
from ntkscope.ways.base import NeedsSamples, Problem, Start, per_sample_of
from ntkscope.ways.costs import jvp_seconds, per_sample_seconds, vjp_seconds

__all__ = ["Columns", "ForwardProducts", "OneHotSamples", "ParameterGram", "ReverseProducts", "Rows", "Tiles"]


class _Exact:
    """What exact ways share."""

    method = "exact"
    is_exact = True

    def is_automatic(self, of_products: bool) -> bool:
        """Wherever it is the cheapest."""
        return True

    def product_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """It is done at once."""
        return math.inf

    def start_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """None: every product runs the model itself."""
        return 0.0


class _NeedsModel:
    """Applicability of what needs J of models."""

    needs_model = True

    def why_not(self, problem: Problem) -> str:
        """A matrix has no J."""
        if problem.sizes is not None:
            return problem.sizes.no_products
        return "a kernel is a matrix, not that of a model"


class _TraceOnly(_Exact):
    def serves(self, of_products: bool) -> bool:
        """Traces alone."""
        return not of_products


class _Products(_Exact):
    def serves(self, of_products: bool) -> bool:
        """All moments; a trace alone has ways of its own."""
        return of_products


def _as_trace(run: Run[Estimate]) -> Run[MomentSource]:
    return MappedRun(run, lambda trace: IndependentMoments({(0,): trace}))


class OneHotSamples(NeedsSamples, _TraceOnly):
    """‖J_b‖²_F of every sample, by as many one-hot probes as a sample has outputs."""

    name = "exact (per sample)"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"{sizes.outputs:,} one-hot probes a sample"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """A backward pass an output of one sample, piece by piece of the state."""
        return per_sample_seconds(sizes, machine, sizes.outputs, sizes.pieces)

    def start_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """The forward pass that all probes share."""
        return per_sample_seconds(sizes, machine, 0, 1)

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, in one step."""
        (samples,) = per_sample_of(problem, self.method)
        work = lambda: Estimate(float(samples.exact_squares(listener.fraction).sum()), 0.0)  # noqa: E731
        return Start(_as_trace(Once(work)))


class ReverseProducts(_NeedsModel, _TraceOnly):
    """‖J‖²_F by reverse products with every state's direction."""

    name = "exact (n VJPs)"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"{sizes.n:,} reverse products"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """N reverse products."""
        return vjp_seconds(sizes, machine, sizes.n)

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, over the columns of Jᵀ."""
        (factor,) = problem.factors(self.method, "reverse mode (Jᵀz)")
        return Start(_as_trace(ExactFactorRun(factor.T, listener.fraction)))


class ForwardProducts(_NeedsModel, _TraceOnly):
    """‖J‖²_F by forward products with every parameter's direction."""

    name = "exact (p JVPs)"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"{sizes.p:,} forward products"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """P forward products."""
        return jvp_seconds(sizes, machine, sizes.p)

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, over the columns of J."""
        (factor,) = problem.factors(self.method, "forward mode (Ju)")
        return Start(_as_trace(ExactFactorRun(factor, listener.fraction)))


class Tiles(NeedsSamples, _Products):
    """Every entry of K by layer factors, in tiles; nothing of size n² is kept."""

    name = "exact (tiles)"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"every entry of K by layer factors, {sizes.n:,}² in tiles"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """The samples' one-hot probes, and n² products of factors."""
        width = sizes.taps + sizes.general
        tiles = machine.seconds(sizes.n**2 * width, sizes.n**2 * 2.0, 0)
        return sizes.kernels * (tiles + per_sample_seconds(sizes, machine, sizes.outputs, 1))

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, in one step."""
        first, *others = per_sample_of(problem, self.method)
        return _once(lambda: Moments(*first.exact_moments(others, listener.fraction)))


class Rows(_NeedsModel, _Products):
    """Rows of J by reverse products, multiplied in tiles."""

    name = "exact (rows)"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"{sizes.n:,} rows of J by reverse products, multiplied in tiles"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """N reverse products, and n² inner products of rows."""
        rows = machine.seconds(sizes.n**2 * sizes.p, sizes.n**2 / 2, 0)
        return sizes.kernels * (vjp_seconds(sizes, machine, sizes.n) + rows)

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, in one step."""
        factors = [factor.T for factor in problem.factors(self.method, "reverse mode (Jᵀz)")]
        budget = 1 << 30 if problem.engines is None else problem.engines[0].budget
        return _once(lambda: row_moments(factors, budget, listener.fraction))


class ParameterGram(_NeedsModel, _Products):
    """JᵀJ in place of JJᵀ, where there are fewer parameters than states."""

    name = "exact (parameters)"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"JᵀJ, {sizes.p:,}², in place of JJᵀ"

    def why_not(self, problem: Problem) -> str:
        """It must fit into the memory budget."""
        sizes = problem.sizes
        if sizes is not None and 8 * sizes.p * sizes.p > sizes.budget:
            return f"{sizes.p:,}² numbers do not fit the memory budget"
        return super().why_not(problem)

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """N reverse products, and p² products of columns for every pair of kernels."""
        gram = machine.seconds(2.0 * sizes.n * sizes.p * sizes.p, 0, 0)
        return sizes.kernels * vjp_seconds(sizes, machine, sizes.n) + sizes.kernels**2 * gram

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, in one step."""
        factors = [factor.T for factor in problem.factors(self.method, "reverse mode (Jᵀz)")]
        return _once(lambda: parameter_moments(factors, listener.fraction))


class Columns(_Exact):
    """Products with every column of the identity: for anything with ``shape`` and ``@``."""

    name = "exact"
    needs_model = False

    def is_automatic(self, of_products: bool) -> bool:
        """Only in place of an estimate that would cost as much."""
        return False

    def serves(self, of_products: bool) -> bool:
        """All moments."""
        return True

    def why_not(self, problem: Problem) -> str:
        """A model's kernel has cheaper exact ways."""
        return "" if problem.engines is None else "a model has cheaper exact ways"

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"{sizes.n:,} products with the columns of the identity"

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """N products of every kernel."""
        each = vjp_seconds(sizes, machine, sizes.n) + jvp_seconds(sizes, machine, sizes.n)
        return sizes.kernels * each

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, column by column."""
        run = ExactRun(problem.maps)
        return Start(run, run)


def _once(work: Callable[[], Moments]) -> Start:
    return Start(Once(work))
