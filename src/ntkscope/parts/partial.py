"""Partial traces: the cheapest way is chosen, driven to its tolerance, and made a result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntkscope.engines.base import Engine, Refusal
from ntkscope.operators.ledger import Meter
from ntkscope.operators.space import Small
from ntkscope.progress import ProgressListener, progress_bar
from ntkscope.results import Estimate, PartialTrace
from ntkscope.runs.arrays import ArrayMeans, ArrayRun
from ntkscope.runs.drive import drive
from ntkscope.runs.group import Once, Priced
from ntkscope.settings import DEFAULT_RTOL, Options
from ntkscope.ways.axes import Axes
from ntkscope.ways.partial import (
    PARTIAL_METHODS,
    RANDOM_WAYS,
    Forward,
    OneHot,
    PartialProblem,
    PartialWay,
    RandomWay,
)
from ntkscope.ways.plan import USUAL

__all__ = ["partial_trace", "sample_axis"]


def partial_trace(
    engine: Engine, keep: Any, names: Sequence[str] | None, method: str, options: Options
) -> PartialTrace:
    """As :meth:`ntkscope.NTK.partial_trace`."""
    if method not in PARTIAL_METHODS:
        known = ", ".join(map(repr, PARTIAL_METHODS))
        raise ValueError(f"unknown method {method!r} for partial_trace; choose one of {known}")
    meter = Meter([engine.ledger])
    with engine.session(), progress_bar(options.progress, "partial trace") as listener:
        axes = Axes.of(engine.output_shape, keep, names, sample_axis(engine))
        work = _Work(PartialProblem.of(engine, axes), options, listener)
        found = work.by(method)
        return dataclasses.replace(found, cost=meter()).with_numbers()


def sample_axis(engine: Engine) -> int | None:
    """The axis of the state that holds the samples; ``None`` if it is not known."""
    samples = engine.samples()
    if isinstance(samples, Refusal) or not engine.output_shape:
        return None
    if samples.batch < 2:
        return 0
    first, second = (np.unravel_index(place, engine.output_shape) for place in samples.state_index()[:2, 0])
    (axis,) = [place for place, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    return axis


class _Work:
    """One partial trace, by one way or another.

    Args:
        problem: What is kept.
        options: How far.
        listener: Who is told.
    """

    def __init__(self, problem: PartialProblem, options: Options, listener: ProgressListener) -> None:
        self._problem = problem
        self._options = options
        self._listener = listener
        self._matrix: Small | None = None

    def by(self, method: str) -> PartialTrace:
        """The partial trace by the best way that a method's name stands for.

        Raises:
            ValueError: If none can be taken.
            NotImplementedError: If the model has no forward mode.
        """
        failure: Exception | None = None
        for way in self._ways(method):
            if isinstance(way, OneHot):
                return self._exact(way)
            try:
                if isinstance(way, Forward):
                    _check_forward(self._problem)
            except (NotImplementedError, ValueError) as error:
                # Only trying tells whether there are forward products; what is next does without.
                failure = error
                continue
            return self._estimated(way, method)
        assert failure is not None
        raise failure

    def _ways(self, method: str) -> list[Any]:
        """The ways that a method's name stands for, cheapest first."""
        problem, options = self._problem, self._options
        ways: list[PartialWay] = [OneHot(), *RANDOM_WAYS]
        if method != "auto":
            ways = [way for way in ways if way.method == method]
        elif options.products is not None:
            ways = list(RANDOM_WAYS)
        reasons = [way.why_not(problem) for way in ways]
        possible = [way for way, reason in zip(ways, reasons, strict=True) if not reason]
        if not possible:
            raise ValueError(f"method {method!r} does not apply: {reasons[0]}; use method='forward'")
        sizes, machine = problem.engine.sizes(), problem.engine.machine()
        probes = problem.probes_for(options.tolerance or DEFAULT_RTOL)
        return sorted(possible, key=lambda way: way.seconds(problem, sizes, machine, probes))

    def _exact(self, way: OneHot) -> PartialTrace:
        matrix = way.matrix(self._problem, self._listener.fraction)
        return self._result((matrix + matrix.T) / 2, np.zeros_like(matrix), way.name)

    def _estimated(self, way: RandomWay, method: str) -> PartialTrace:
        problem, options = self._problem, self._options
        size = problem.axes.size
        run = ArrayRun(
            way.draw(problem, options.seed),
            (size, size),
            cost=way.cost(problem),
            epsilon=problem.engine.map().epsilon,
            form=self._numbers,
            is_kernel=True,
        )
        exact = OneHot()
        price = None if exact.why_not(problem) else self._price(way, exact)
        if method != "auto" and price is not None:
            # A method that was asked for by name is taken at its word until it would cost every row of J.
            price = exact.cost(problem) if isinstance(way, type(RANDOM_WAYS[0])) else None
        if price is not None and self._is_hopeless(run, price):
            return self._exact(exact)
        found: list[PartialTrace] = []

        def instead() -> list[Estimate]:
            found.append(self._exact(exact))
            return [found[0].trace]

        stand_in = None if price is None else Priced(lambda: Once(instead), price)
        stamp = drive(run, options, exact=stand_in, progress=self._listener.listener)[0]
        if found:
            return found[0]
        return dataclasses.replace(
            self._of_means(run.means(), way.name), note=stamp.note, converged=stamp.converged
        )

    def _price(self, way: RandomWay, exact: OneHot) -> int:
        """Products of a way that cost as much as the exact one."""
        problem, sizes = self._problem, self._problem.engine.sizes()
        each = way.seconds(problem, sizes, USUAL, 64) / 64 / way.cost(problem)
        price = math.ceil(exact.seconds(problem, sizes, USUAL, 0) / each)
        return min(price, exact.cost(problem)) if isinstance(way, type(RANDOM_WAYS[0])) else price

    def _is_hopeless(self, run: ArrayRun, price: int) -> bool:
        """Whether the first look says that a relative tolerance takes more than the exact way does."""
        tolerance = self._options.tolerance
        if tolerance is None or not self._options.to_tolerance or run.first_look >= price:
            return False
        if self._options.max_products is not None or self._options.seconds is not None:
            return False
        run.grow(run.first_look)
        errors = [estimate.relative_stderr for estimate in run.result()]
        known = [error for error in errors if error is not None]
        return bool(known) and run.first_look * (max(known) / tolerance) ** 2 > price

    def _numbers(self, means: ArrayMeans) -> list[Estimate]:
        """The matrix as a whole, its trace and its effective rank."""
        partial = self._of_means(means, "")
        error = None if means.stderr is None else float(np.linalg.norm(means.stderr))
        freedom = len(means.groups.counts) - 1.0
        whole = Estimate(float(np.linalg.norm(means.values)), error, degrees_of_freedom=freedom)
        return [whole, partial.trace, partial.effective_rank]

    def _of_means(self, means: ArrayMeans, method: str) -> PartialTrace:
        values = (means.values + means.values.T) / 2
        found = self._result(values, means.stderr, method)
        return dataclasses.replace(
            found,
            degrees_of_freedom=means.degrees_of_freedom,
            seed=self._options.seed,
            groups=means.groups,
        ).with_numbers()

    def _result(self, values: Small, stderr: Small | None, method: str) -> PartialTrace:
        axes = self._problem.axes
        return PartialTrace(
            values,
            stderr,
            method=method,
            epsilon=self._problem.engine.map().epsilon,
            keep=axes.keep,
            kept_shape=axes.kept_shape,
        ).with_numbers()


def _check_forward(problem: PartialProblem) -> None:
    """An error if there are no forward products."""
    if problem.has_directions and not isinstance(problem.samples, Refusal):
        _ = problem.samples.direction_size
    else:
        problem.engine.check_forward()
