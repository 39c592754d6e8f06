"""Estimates from products with random probes: K, Jᵀ or J, applied to blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ntkscope.engines.base import Machine, Sizes
from ntkscope.operators.composed import ProductMap
from ntkscope.operators.space import Map
from ntkscope.progress import ProgressListener
from ntkscope.results import Estimate
from ntkscope.runs.drive import Run
from ntkscope.runs.exact import ExactFactorRun, ExactGramRun, ExactRun
from ntkscope.runs.gram import GramRun
from ntkscope.runs.group import GroupRun, MappedRun
from ntkscope.runs.hutchinson import HutchinsonRun, factor_draw, two_sided_draw
from ntkscope.runs.hutchpp import HutchPlusPlusRun
from ntkscope.runs.moments import MomentSource
from ntkscope.runs.sources import IndependentMoments
from ntkscope.ways.base import Problem, Start
from ntkscope.ways.costs import growth_of, jvp_seconds, vjp_seconds

__all__ = ["Gram", "HutchPlusPlus", "Hutchinson", "OneSided", "Shared"]

# Products that a sketch is expected to need for 1%.
_PRODUCTS_FOR_ONE_PERCENT = 60
# Without products with K its squares have far larger errors (benchmarks/spectra: 4 to 14 times).
_GRAM_PRODUCTS_FOR_ONE_PERCENT = 1000


def _as_trace(run: Run[Estimate]) -> Run[MomentSource]:
    return MappedRun(run, lambda trace: IndependentMoments({(0,): trace}))


class _Products:
    """What the methods of products share."""

    method: str
    is_exact = False
    needs_model = False
    traces_alone = False

    @property
    def name(self) -> str:
        """The method's."""
        return self.method

    def is_automatic(self, of_products: bool) -> bool:
        """Only where it is the best of its kind."""
        return False

    def serves(self, of_products: bool) -> bool:
        """All moments, unless it is a method of traces."""
        return not (of_products and self.traces_alone)

    def why_not(self, problem: Problem) -> str:
        """An engine may have no products; nothing else is known before it is tried."""
        return "" if problem.sizes is None else problem.sizes.no_products

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"the kernel's products with random probes, about {self.products(rtol):,} for {rtol:.2g}"

    def products(self, rtol: float) -> int:
        """How many a tolerance is expected to take."""
        return math.ceil(_PRODUCTS_FOR_ONE_PERCENT * growth_of(rtol))

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """So many NTK products of every kernel."""
        count = self.products(rtol)
        each = vjp_seconds(sizes, machine, count) + jvp_seconds(sizes, machine, count)
        return sizes.kernels * each

    def product_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """An NTK product beside others."""
        return (vjp_seconds(sizes, machine, 64) + jvp_seconds(sizes, machine, 64)) / 64

    def start_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """None: every product runs the model itself."""
        return 0.0


@dataclass(frozen=True)
class Shared(_Products):
    """Every moment from shared products: the sketch, or Nyström approximations.

    Attributes:
        method: The method's name.
        run: Makes the run of the kernels' maps and ``seed=``: a class of :mod:`ntkscope.runs`.
        automatic_for: Whether ``"auto"`` may take it for ``"traces"`` alone or for ``"products"`` of kernels.
        traces_alone: Whether it is a name for traces, as ``"xtrace"`` is for the sketch.
    """

    method: str
    run: Callable[..., Run[MomentSource]]
    automatic_for: Literal["traces", "products", ""] = ""
    traces_alone: bool = False

    def is_automatic(self, of_products: bool) -> bool:
        """Nyström for traces, where every product is a probe; the sketch where its power pays."""
        return self.automatic_for == ("products" if of_products else "traces")

    def products(self, rtol: float) -> int:
        """A sketch's squares converge faster than 1/√m."""
        growth = growth_of(rtol) if self.traces_alone else max(1.0, 0.01 / rtol)
        return math.ceil(_PRODUCTS_FOR_ONE_PERCENT * growth)

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, and the exact one that a large budget turns it into."""
        _check_forward(problem)
        return Start(self.run(problem.maps, seed=seed), ExactRun(problem.maps))


class Gram(_Products):
    """Reverse mode alone: every moment from ΩᵀKΩ."""

    method = "gram"

    def is_automatic(self, of_products: bool) -> bool:
        """Where a model has no forward mode, it is what is left."""
        return True

    def words(self, sizes: Sizes, rtol: float) -> str:
        """For plans."""
        return f"reverse mode alone with random probes, about {self.products(rtol):,} for {rtol:.2g}"

    def products(self, rtol: float) -> int:
        """Its error falls as 1/√m, from a larger one."""
        return math.ceil(_GRAM_PRODUCTS_FOR_ONE_PERCENT * growth_of(rtol))

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """So many VJPs of every kernel."""
        return sizes.kernels * vjp_seconds(sizes, machine, self.products(rtol))

    def product_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """A VJP beside others."""
        return vjp_seconds(sizes, machine, 64) / 64

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, and the exact one that a large budget turns it into."""
        factors = problem.factors(self.method, "reverse mode (Jᵀz)")
        reverse = [factor.T for factor in factors]
        return Start(GramRun(reverse, seed=seed), ExactGramRun(reverse))


class HutchPlusPlus(_Products):
    """Separate Hutch++ runs on K, K², K₁K₂, as in arXiv 2511.10796, that share no randomness."""

    method = "hutch++"

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The runs side by side."""
        _check_forward(problem)
        maps = problem.maps
        parts: list[Run[Any]] = []
        for number, moment in enumerate(problem.moments):
            operator = maps[moment[0]] if len(moment) == 1 else _product(maps, moment)
            parts.append(
                HutchPlusPlusRun(operator, seed=seed, stream=2 * number, products_per_probe=len(moment))
            )
        run = GroupRun(parts, [len(moment) for moment in problem.moments], _named(problem.moments))
        return Start(run, ExactRun(maps))


def _product(maps: Sequence[Map], moment: tuple[int, ...]) -> ProductMap:
    return ProductMap(maps[moment[0]], maps[moment[1]])


def _named(moments: Sequence[tuple[int, ...]]) -> Callable[[list[Estimate]], IndependentMoments]:
    return lambda estimates: IndependentMoments(dict(zip(moments, estimates, strict=True)))


class Hutchinson(_Products):
    """The mean of zᵀKz."""

    method = "hutchinson"
    traces_alone = True

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, and the exact one that a large budget turns it into."""
        (operator,) = problem.maps
        draw = two_sided_draw(operator, seed=seed)
        run = HutchinsonRun(draw, method=self.method, seed=seed, epsilon=operator.epsilon)
        return Start(_as_trace(run), ExactRun(problem.maps))


@dataclass(frozen=True)
class OneSided(_Products):
    """The mean of ‖Jᵀz‖² (RHutch of arXiv 2511.10796), or of ‖Ju‖² (its FHutch).

    Attributes:
        method: Its name.
        is_reverse: Which of the two.
        needs: What it needs, in words.
    """

    method: str
    is_reverse: bool
    needs: str
    traces_alone = True

    def product_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """A VJP or a JVP beside others."""
        count = vjp_seconds if self.is_reverse else jvp_seconds
        return count(sizes, machine, 64) / 64

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run, and the exact one that a large budget turns it into."""
        (jacobian,) = problem.factors(self.method, self.needs)
        factor = jacobian.T if self.is_reverse else jacobian
        draw = factor_draw(factor, seed=seed)
        run = HutchinsonRun(draw, method=self.method, seed=seed, epsilon=factor.epsilon)
        return Start(_as_trace(run), _as_trace(ExactFactorRun(factor)))


def _check_forward(problem: Problem) -> None:
    """NTK products need both modes; what a model lacks is said before the first product."""
    for operator in problem.operators:
        engine = getattr(operator, "engine", None)
        if engine is not None:
            engine.check_forward()
