"""Traces and inner products of the kernels of parts of the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntkscope.engines.base import Engine, Machine, Refusal, Samples, Sizes
from ntkscope.metrics import evaluate
from ntkscope.operators.probes import sphere_probes
from ntkscope.operators.space import Small
from ntkscope.parts.grouping import Grouping
from ntkscope.progress import ProgressListener
from ntkscope.results import Cost, Estimate
from ntkscope.runs.drive import drive
from ntkscope.runs.gram import gram_moments
from ntkscope.runs.group import Once, Priced
from ntkscope.runs.moments import Moments, MomentSource
from ntkscope.runs.sample_gram import SampleGramRun
from ntkscope.settings import DEFAULT_RTOL, Options
from ntkscope.ways.costs import vjp_seconds
from ntkscope.ways.exact import Tiles
from ntkscope.ways.per_sample import PerSampleGram
from ntkscope.ways.plan import USUAL

__all__ = ["part_moments"]

_STREAM = 27


def part_moments(
    engines: Sequence[Engine],
    grouping: Grouping,
    method: str,
    options: Options,
    listener: ProgressListener,
    wanted: tuple[str, Sequence[tuple[int, ...]]],
) -> tuple[MomentSource, str]:
    """The moments of c·L kernels: part a of engine e is kernel e·L + a.

    Args:
        engines: One kernel, or two on the same state.
        grouping: The L parts.
        method: How.
        options: How far; a tolerance is met when every wanted number whose value is known meets it.
        listener: Who is told.
        wanted: A metric, and the kernels that it is wanted of.

    Returns:
        The moments, and the name of the way.
    """
    samples = [engine.samples() for engine in engines]
    known = [one for one in samples if not isinstance(one, Refusal)]
    comparable = len(known) == len(samples) and all(known[0].is_comparable(one) for one in known[1:])
    if not comparable:
        known = []
    way = _way(engines, known, method, options)

    def exact() -> Moments:
        if not known:
            return _exact_whole(engines, grouping)
        first, *rest = (one.in_parts(grouping.parts) for one in known)
        return Moments(*first.exact_moments(rest, listener.fraction))

    if way == "exact":
        return exact(), "exact"
    run: _PerSampleRun | _WholeRun
    if way == "per-sample":
        run = _PerSampleRun(known, grouping, options.seed, wanted, engines[0].map().epsilon)
    else:
        run = _WholeRun(engines, grouping, options.seed, wanted)
    found: list[Moments] = []

    def instead() -> list[Estimate]:
        found.append(exact())
        return [Estimate(0.0, 0.0)]

    # A budget of products is taken at its word.
    replaced = options.to_tolerance and (known or _fits(engines[0].sizes()))
    stand_in = Priced(lambda: Once(instead), _price(engines, way)) if replaced else None
    drive(run, options, exact=stand_in, progress=listener.listener)
    return (found[0], "exact") if found else (run.source(), way)


def _price(engines: Sequence[Engine], way: str) -> int:
    """Backward passes that cost as much as the exact way."""
    sizes = engines[0].sizes(len(engines))
    if way == "gram":
        return sizes.n * len(engines)
    exact = Tiles().seconds(sizes, USUAL, DEFAULT_RTOL)
    return math.ceil(exact / PerSampleGram().product_seconds(sizes, USUAL))


def _way(engines: Sequence[Engine], known: Sequence[Samples], method: str, options: Options) -> str:
    """The way that a method's name stands for.

    Raises:
        ValueError: If it does not apply.
    """
    if method == "per-sample" and not known:
        raise ValueError("method 'per-sample' does not apply: the samples are coupled; use method='gram'")
    if method != "auto":
        return method
    if options.products is not None:
        return "per-sample" if known else "gram"
    sizes, machine = engines[0].sizes(len(engines)), engines[0].machine()
    rtol = options.tolerance or DEFAULT_RTOL
    if known:
        exact = Tiles().seconds(sizes, machine, rtol)
        return "exact" if exact <= PerSampleGram().seconds(sizes, machine, rtol) else "per-sample"
    return "exact" if _whole_seconds(sizes, machine) <= 30.0 and _fits(sizes) else "gram"


def _whole_seconds(sizes: Sizes, machine: Machine) -> float:
    return vjp_seconds(sizes, machine, sizes.n) + machine.seconds(sizes.n**2 * float(sizes.p), 0, 0)


def _fits(sizes: Sizes) -> bool:
    return 8 * sizes.n * (sizes.p + sizes.n) <= sizes.budget


class _NumbersOfParts:
    """What the runs share: the wanted numbers, those that are not defined left out."""

    def __init__(self, wanted: tuple[str, Sequence[tuple[int, ...]]], epsilon: float) -> None:
        self._metric, self._kernels = wanted
        self._epsilon = epsilon

    def source(self) -> MomentSource:
        """What is known so far."""
        raise NotImplementedError

    def result(self) -> list[Estimate]:
        """The wanted numbers."""
        found = [
            evaluate(self.source(), self._metric, kernels, method="", cost=Cost(), epsilon=self._epsilon)
            for kernels in self._kernels
            if len(set(kernels)) == len(kernels)
        ]
        return [one for one in found if math.isfinite(one.value)] or [Estimate(0.0)]


class _PerSampleRun(_NumbersOfParts):
    """Inner products of a few random probes of every sample, pulled back once for all parts."""

    stride = 4.0

    def __init__(
        self, samples: Sequence[Samples], grouping: Grouping, seed: int, wanted: Any, epsilon: float
    ) -> None:
        super().__init__(wanted, epsilon)
        kernels = [part for one in samples for part in one.in_parts(grouping.parts).probed()]
        self._run = SampleGramRun(kernels, seed=seed)
        self._parts = len(grouping.names)
        self.quantum = len(samples)
        self.minimum = self.first_look = 2 * len(samples)

    def grow(self, products: int) -> None:
        """So many VJPs in all."""
        self._run.grow(products // self.quantum * self.quantum * self._parts)

    def source(self) -> MomentSource:
        """The ring's moments."""
        return self._run.result()


class _WholeRun(_NumbersOfParts):
    """Gram matrices of Jᵀω of every part, for probes over the whole batch."""

    stride = 4.0
    first_look = None

    def __init__(self, engines: Sequence[Engine], grouping: Grouping, seed: int, wanted: Any) -> None:
        super().__init__(wanted, engines[0].map().epsilon)
        self._engines, self._grouping, self._seed = engines, grouping, seed
        self._rows: list[Small] = [np.zeros((engine.shape[1], 0)) for engine in engines]
        self.quantum = len(engines)
        self.minimum = 4 * len(engines)

    def grow(self, products: int) -> None:
        """So many VJPs in all."""
        stop = products // len(self._engines)
        for place, engine in enumerate(self._engines):
            start = self._rows[place].shape[1]
            if stop > start:
                probes = sphere_probes(engine.shape[0], start, stop, seed=self._seed, stream=_STREAM)
                fresh = np.asarray(engine.map().T @ probes, dtype=np.float64)
                self._rows[place] = np.concatenate([self._rows[place], fresh], axis=1)

    def source(self) -> MomentSource:
        """U-statistics of the probes' pairs."""
        forms = [
            form
            for engine, rows in zip(self._engines, self._rows, strict=True)
            for form in _forms(engine, self._grouping, rows)
        ]
        return gram_moments(np.array(forms), self._epsilon)


def _forms(engine: Engine, grouping: Grouping, rows: Small) -> Small:
    """XᵀX of every part of the columns X of Jᵀ times something: (L, k, k)."""
    found = np.zeros((len(grouping.names), rows.shape[1], rows.shape[1]))
    place = 0
    for name, shape in engine.parameters.items():
        own = rows[place : place + math.prod(shape)]
        found[grouping.parts[name]] += own.T @ own
        place += math.prod(shape)
    return found


def _exact_whole(engines: Sequence[Engine], grouping: Grouping) -> Moments:
    """From all rows of J, kernels themselves."""
    kernels = []
    for engine in engines:
        rows = np.asarray(engine.map().T @ np.eye(engine.shape[0]), dtype=np.float64)
        kernels += [kernel.reshape(-1) for kernel in _forms(engine, grouping, rows)]
    flat = np.array(kernels)
    n = engines[0].shape[0]
    return Moments(flat[:, :: n + 1].sum(axis=1), flat @ flat.T)
