"""Runs that grow: spend products, look at the error bar, stop or go on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ntkscope.interrupts import heed_interrupt
from ntkscope.results import Estimate, Measurement, student_t_quantile
from ntkscope.runs.together import agreed, now
from ntkscope.settings import Options, Progress, check_minimum

__all__ = ["SHORT_STRIDE", "Run", "drive", "estimates_of", "first_look_of", "is_within"]

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")

#: A run stops when this much of Student's t lies within the tolerance. At 75%, an
#: estimate misses by more than twice the tolerance in about two runs of a hundred,
#: for 1.3 times the products of one standard error.
TOLERANCE_LEVEL = 0.75


#: Of runs whose error may fall much faster than 1/√m: a longer one may overshoot by far.
SHORT_STRIDE = 1.33

# A run without a limit ends after so many products that were all zero.
_ZERO_PRODUCTS = 64


class Run(Protocol[Result_co]):
    """An estimate that can be improved by spending more products.

    What it has found depends on the number of products that it was grown to, not
    on the steps by which it came there.
    """

    @property
    def minimum(self) -> int:
        """Fewest products that give a result."""
        ...

    @property
    def quantum(self) -> int:
        """Growth in multiples of this many products never wastes one."""
        ...

    @property
    def stride(self) -> float:
        """By what factor it may grow without a look at its error bar."""
        ...

    def grow(self, products: int) -> None:
        """Spend until ``products`` have run in all; never more.

        Products that were finished when an exception comes (a KeyboardInterrupt)
        are kept, and growing may be taken up again.
        """
        ...

    def result(self) -> Result_co:
        """What is known so far: an Estimate, a Measurement, or a list of them."""
        ...


def first_look_of(run: Run[Any]) -> int | None:
    """After how many products one error bar may end a run (its ``first_look``); ``None``: two must agree."""
    own: int | None = getattr(run, "first_look", None)
    return own


def estimates_of(result: Any) -> list[Estimate]:
    """All the estimates in a run's result."""
    if isinstance(result, Estimate):
        return [result]
    if isinstance(result, Measurement):
        return [estimate for _, estimate in result.rows()]
    return [estimate for part in result for estimate in estimates_of(part)]


def _excess(estimate: Estimate, rtol: float | None, atol: float | None) -> float:
    """Half width of the 75% interval over the tolerance; infinite when not known."""
    if estimate.stderr is None or not math.isfinite(estimate.value):
        return math.inf
    if estimate.stderr == 0:
        return 0.0
    # Quantiles are tabled at a few degrees of freedom, rounded to the safe side.
    freedom = estimate.degrees_of_freedom
    if freedom >= 1:
        freedom = math.inf if math.isinf(freedom) else math.floor(freedom * 4) / 4
    tolerance = max((rtol or 0.0) * abs(estimate.value), atol or 0.0)
    half = estimate.stderr * student_t_quantile((1 + TOLERANCE_LEVEL) / 2, freedom)
    return half / tolerance if tolerance > 0 else math.inf


def is_within(estimate: Estimate, *, rtol: float | None = None, atol: float | None = None) -> bool:
    """Whether the error bar meets the tolerance max(rtol |value|, atol).

    The error bar is the half width of the 75% interval by Student's t.

    >>> is_within(Estimate(100.0, stderr=0.7), rtol=0.01)
    True
    >>> is_within(Estimate(100.0, stderr=0.9), rtol=0.01)
    False
    """
    return _excess(estimate, rtol, atol) <= 1


@dataclass(frozen=True)
class _Budget:
    """Where a run must end."""

    products: int | None
    rtol: float | None
    atol: float | None
    limit: int | None
    deadline: float

    @property
    def to_tolerance(self) -> bool:
        return self.products is None


def drive(
    run: Run[Result],
    options: Options | None = None,
    *,
    exact: Run[Result] | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = now,
) -> Result:
    """Grow a run to a fixed budget, or until its error bars meet a tolerance.

    A tolerance is met when, for every estimate of the result, the half width of
    the 75% interval by Student's t is at most max(rtol |value|, atol), at two looks
    with ``run.minimum`` products between them. The
    criterion is always the standard error, never the difference of successive
    values. Without a budget or a tolerance, ``rtol`` is 0.01.

    ``max_products``, ``seconds`` and Ctrl-C end a run early: the result so far
    comes back with ``converged=False`` and a ``note`` that says why. Ctrl-C
    before the first result is known is raised again.

    Args:
        run: What to grow.
        options: How far.
        exact: Run that is taken instead when the budget reaches its ``minimum``, or
            when half of that was spent and the tolerance is not met.
        progress: Called after every step with (estimate, spent, budget).
        clock: Seconds.

    Returns:
        The result of the run.

    Raises:
        ValueError: For a budget below the minimum.
    """
    options = options or Options()
    check_minimum(options, run.minimum if exact is None else min(run.minimum, exact.minimum))
    limit = options.max_products if options.to_tolerance else options.products
    if exact is not None and (limit is None or exact.minimum <= limit):
        if not options.to_tolerance or exact.minimum <= run.minimum:
            return _finish(exact, progress)
        # Half of what exact costs without meeting the tolerance: the other half would not either.
        limit = max(run.minimum, exact.minimum // 2)
    start = clock()
    deadline = agreed(math.inf if options.seconds is None else start + options.seconds)
    budget = _Budget(options.products, options.tolerance, options.atol, limit, deadline)
    ending = _grow(run, budget, progress, clock)
    affordable = options.max_products is None or (exact is not None and exact.minimum <= options.max_products)
    if ending == "limit" and exact is not None and affordable:
        try:
            return _finish(exact, progress)
        except KeyboardInterrupt:
            # What the run has found by then is known all the same.
            if not _has_result(run):
                raise
            ending = "interrupted"
    stamped: Result = _stamp(run.result(), ending, budget)
    return stamped


def _finish(exact: Run[Result], progress: Progress | None) -> Result:
    exact.grow(exact.minimum)
    result = exact.result()
    if progress is not None:
        progress(estimates_of(result)[0], exact.minimum, exact.minimum)
    return result


def _is_zero(estimate: Estimate) -> bool:
    return estimate.value == 0 or math.isnan(estimate.value)


def _grow(run: Run[Any], budget: _Budget, progress: Progress | None, clock: Callable[[], float]) -> str:
    """Grow step by step; the answer says why it ended."""
    spent, start, is_met = 0, clock(), False
    # A look at a result may take all processes.
    looks = agreed(progress is not None) or budget.to_tolerance
    target = _first_look(run, budget) if budget.to_tolerance else _fixed_step(run, 0, budget)
    while True:
        try:
            run.grow(target)
            spent = target
            if looks:
                estimates = estimates_of(run.result())
                worst = max(estimates, key=lambda e: _excess(e, budget.rtol, budget.atol))
                excess = _excess(worst, budget.rtol, budget.atol)
                if progress is not None:
                    progress(worst, spent, budget.limit)
                heed_interrupt()
                was_met, is_met = is_met, budget.to_tolerance and excess <= 1
                is_sure = was_met or first_look_of(run) is not None or _is_certain(estimates)
                if is_met and (is_sure or spent == budget.limit):
                    return "met"
                unlimited = budget.to_tolerance and budget.limit is None
                if unlimited and spent >= _ZERO_PRODUCTS and all(map(_is_zero, estimates)):
                    # A relative tolerance of zero is never met.
                    return "zero"
        except KeyboardInterrupt:
            if spent == 0 and not _has_result(run):
                raise
            return "interrupted"
        if budget.limit is not None and spent >= budget.limit:
            return "limit" if budget.to_tolerance else "spent"
        now = clock()
        if now >= budget.deadline:
            return "time"
        target = _next(run, spent, excess, budget) if budget.to_tolerance else _fixed_step(run, spent, budget)
        if budget.deadline < math.inf and now > start:
            affordable = spent + int((budget.deadline - now) * spent / (now - start))
            target = min(target, max(affordable, spent + run.quantum))


def _first_look(run: Run[Any], budget: _Budget) -> int:
    """Its own first look, or the minimum: that error bar ends no run, but the next may agree with it."""
    own = first_look_of(run)
    first = run.minimum if own is None else own
    return first if budget.limit is None else min(first, budget.limit)


def _is_certain(estimates: list[Estimate]) -> bool:
    return all(estimate.stderr == 0 for estimate in estimates)


def _has_result(run: Run[Any]) -> bool:
    try:
        run.result()
    except ValueError:
        return False
    return True


def _fixed_step(run: Run[Any], spent: int, budget: _Budget) -> int:
    """The next stop on the way to a fixed budget, for progress and for Ctrl-C."""
    assert budget.products is not None
    step = max(64, budget.products // 8)
    target = max(run.minimum, spent + run.quantum, (spent + step) // run.quantum * run.quantum)
    return budget.products if target + step // 2 > budget.products else target


def _next(run: Run[Any], spent: int, excess: float, budget: _Budget) -> int:
    """Where to look next: nearly where √m convergence ends, 15% further at least.

    An error bar that meets the tolerance is looked at once more after as many fresh products as the
    run has at its minimum: probes that share an approximation may all miss the same large direction,
    and agree. Few probes find their error bar large by Student's t alone, so 0.7 of the way is gone; a run
    that converges faster than √m goes no further than its stride.
    """
    factor = min(run.stride, max(1.15, 0.7 * excess**2))
    target = max(spent + run.quantum, math.ceil(spent * factor / run.quantum) * run.quantum)
    if first_look_of(run) is None and (excess <= 1 or spent <= run.minimum):
        target = spent + max(run.minimum, run.quantum)
    return target if budget.limit is None else min(target, budget.limit)


def _stamp(result: Any, ending: str, budget: _Budget) -> Any:
    """Say on every estimate whether it met the tolerance, and what ended the run."""
    if isinstance(result, list):
        return type(result)(_stamp(part, ending, budget) for part in result)
    if isinstance(result, Measurement):
        return result.map(lambda estimate: _stamp(estimate, ending, budget))
    if ending == "spent":
        return result
    met = budget.to_tolerance and is_within(result, rtol=budget.rtol, atol=budget.atol)
    reasons = {
        "met": "",
        "limit": f"max_products={budget.limit} ended it before the tolerance was met",
        "time": "the time budget ended it",
        "interrupted": "interrupted",
        "zero": "every product was zero, and so is the kernel, as far as the probes can see",
    }
    notes = [result.note, "" if met else reasons[ending]]
    return dataclasses.replace(result, converged=met, note="; ".join(note for note in notes if note))
