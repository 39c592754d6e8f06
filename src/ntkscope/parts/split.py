"""Numbers of a kernel in parts: its trace by layer, sample or output; all metrics by layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.base import Engine, Refusal, SampleParts, Samples
from ntkscope.metrics import METRICS, evaluate, kernels_of
from ntkscope.operators.ledger import Meter
from ntkscope.operators.probes import normal_probes, sphere_probes
from ntkscope.operators.space import Small
from ntkscope.parts.grouping import Grouping, group_parameters
from ntkscope.parts.moments import part_moments
from ntkscope.progress import ProgressListener, progress_bar
from ntkscope.results import Estimate, PartAlignments, Split
from ntkscope.runs.drive import drive
from ntkscope.runs.group import Once, Priced
from ntkscope.runs.hutchinson import HutchinsonRun
from ntkscope.settings import DEFAULT_RTOL, Options
from ntkscope.ways.costs import vjp_seconds
from ntkscope.ways.exact import OneHotSamples
from ntkscope.ways.per_sample import STREAM, PerSample
from ntkscope.ways.plan import USUAL

__all__ = ["SPLIT_METHODS", "part_alignments", "split"]

SPLIT_METHODS = ("auto", "exact", "per-sample", "gram")
_STREAM = 26


def split(engine: Engine, metric: str, by: Any, other: Engine | None, method: str, options: Options) -> Split:
    """As :meth:`ntkscope.NTK.split`."""
    _check(metric, method)
    if by in ("sample", "output") and metric != "trace":
        raise ValueError(
            f"by={by!r} splits the trace alone; of one output make an NTK with outputs=lambda y: y[..., 0], "
            "of some samples one with these inputs"
        )
    wanted = kernels_of(metric)
    if (wanted > 1) != (other is not None):
        raise ValueError(f"{metric} takes {wanted} kernels, found {1 + (other is not None)}; see other=")
    engines = [engine] if other is None else [engine, other]
    meter = Meter([one.ledger for one in engines])
    with engine.session(), progress_bar(options.progress, f"{metric} in parts") as listener:
        if metric == "trace":
            found = _TraceInParts(engine, by, options, listener).by(method)
            return _with_cost(found, meter)
        grouping = group_parameters(by, engine.parameters)
        source, name = part_moments(
            engines, grouping, method, options, listener, _metric_kernels(metric, grouping)
        )
        count = len(grouping.names)
        parts = {
            part: evaluate(
                source, metric, (a, a + count), method=name, cost=meter(), seed=options.seed,
                epsilon=engine.map().epsilon,
            )
            for a, part in enumerate(grouping.names)
        }  # fmt: skip
        return _with_cost(Split(parts, None, metric, grouping.words), meter)


def part_alignments(
    engine: Engine, by: Any, other: Engine | None, method: str, options: Options
) -> PartAlignments:
    """As :meth:`ntkscope.NTK.part_alignments`."""
    _check("alignment", method)
    engines = [engine] if other is None else [engine, other]
    meter = Meter([one.ledger for one in engines])
    with engine.session(), progress_bar(options.progress, "alignments of parts") as listener:
        grouping = group_parameters(by, engine.parameters)
        count = len(grouping.names)
        shift = 0 if other is None else count
        pairs = [(a, b + shift) for a in range(count) for b in range(count)]
        source, name = part_moments(engines, grouping, method, options, listener, ("alignment", pairs))
        epsilon = engine.map().epsilon
        values, stderr, freedom = np.ones((3, count, count))
        for a, b in pairs:
            place = (a, b - shift)
            if a == b:
                # A kernel with itself, if it is not zero.
                values[place] = 1.0 if source.value((a, a)) > 0 else math.nan
                stderr[place], freedom[place] = 0.0, math.inf
                continue
            one = evaluate(source, "alignment", (a, b), method=name, cost=meter(), epsilon=epsilon)
            values[place], freedom[place] = one.value, one.degrees_of_freedom
            stderr[place] = math.nan if one.stderr is None else one.stderr
        return PartAlignments(
            values, stderr, method=name, degrees_of_freedom=freedom, cost=meter(),
            seed=None if name == "exact" else options.seed, epsilon=epsilon,
            rows=grouping.names, columns=grouping.names,
        )  # fmt: skip


def _metric_kernels(metric: str, grouping: Grouping) -> tuple[str, list[tuple[int, ...]]]:
    count = len(grouping.names)
    if kernels_of(metric) > 1:
        return metric, [(a, a + count) for a in range(count)]
    return metric, [(a,) for a in range(count)]


def _check(metric: str, method: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of " + ", ".join(map(repr, METRICS)))
    if method not in SPLIT_METHODS:
        known = ", ".join(map(repr, SPLIT_METHODS))
        raise ValueError(f"unknown method {method!r} for splits; choose one of {known}")


def _with_cost(found: Split, meter: Meter) -> Split:
    cost = meter()
    parts = {name: dataclasses.replace(part, cost=cost) for name, part in found.parts.items()}
    whole = None if found.whole is None else dataclasses.replace(found.whole, cost=cost)
    return dataclasses.replace(found, parts=parts, whole=whole, cost=cost)


class _TraceInParts:
    """The trace of every part, and of the whole from the same products.

    Args:
        engine: The model.
        by: What the parts are.
        options: How far.
        listener: Who is told.
    """

    def __init__(self, engine: Engine, by: Any, options: Options, listener: ProgressListener) -> None:
        self._engine, self._options, self._listener = engine, options, listener
        samples = engine.samples()
        self._samples: Samples | None = None if isinstance(samples, Refusal) else samples
        self._by = by
        if isinstance(by, str) and by in ("sample", "output"):
            if self._samples is None:
                assert isinstance(samples, Refusal)
                raise ValueError(
                    f"by={by!r} needs samples on their own, but {samples.reason}; use by='layer'"
                )
            shape = engine.output_shape
            count = self._samples.batch if by == "sample" else (shape[-1] if shape else 1)
            self._grouping = Grouping(tuple(map(str, range(count))), {}, by)
        else:
            self._grouping = group_parameters(by, engine.parameters)

    def by(self, method: str) -> Split:
        """The split by the method of this name."""
        chosen = self._cheapest() if method == "auto" else method
        if chosen == "exact":
            return self._exact(self._exact_parts())
        run = self._run(chosen)
        found: list[Split] = []

        def instead() -> Estimate:
            found.append(self._exact(self._exact_parts()))
            assert found[0].whole is not None
            return found[0].whole

        # A budget of products is taken at its word.
        replaced = self._options.to_tolerance
        exact = Priced(lambda: Once(instead), self._price(chosen)) if replaced else None
        whole = drive(run, self._options, exact=exact, progress=self._listener.listener)
        if found:
            return found[0]
        grouping = self._grouping
        parts = {
            name: dataclasses.replace(part, note=whole.note, converged=whole.converged)
            for name, part in zip(grouping.names, run.parts(), strict=True)
        }
        return Split(parts, whole, "trace", grouping.words)

    def _price(self, method: str) -> int:
        """Random probes that cost as much as the exact way."""
        sizes = self._engine.sizes()
        if self._samples is None:
            return sizes.n
        exact = OneHotSamples().seconds(sizes, USUAL, DEFAULT_RTOL)
        price = math.ceil(exact / PerSample().product_seconds(sizes, USUAL))
        return min(price, sizes.outputs)

    def _cheapest(self) -> str:
        """Outputs are told apart by one-hot probes alone; others as the trace itself."""
        engine, options = self._engine, self._options
        sizes, machine, rtol = engine.sizes(), engine.machine(), options.tolerance or DEFAULT_RTOL
        if self._grouping.words == "output":
            return "exact"
        if self._samples is None:
            if options.products is not None:
                return "gram"
            exact = vjp_seconds(sizes, machine, sizes.n)
            return "exact" if exact <= vjp_seconds(sizes, machine, math.ceil(0.5 / rtol**2)) else "gram"
        exact = OneHotSamples().seconds(sizes, machine, rtol)
        drawn = PerSample().seconds(sizes, machine, rtol)
        if options.products is not None:
            return "exact" if options.products >= sizes.outputs else "per-sample"
        return "exact" if exact <= drawn else "per-sample"

    def _exact_parts(self) -> Small:
        report = self._listener.fraction
        if self._samples is None:
            return _whole_squares(self._engine, self._grouping, None, 0, self._engine.shape[0]).sum(0)
        if self._grouping.words == "sample":
            return self._samples.exact_squares(report)
        if self._grouping.words == "output":
            found = np.zeros(self._engine.shape[0])
            found[self._samples.state_index()] = self._samples.output_squares(report)
            return found.reshape(-1, len(self._grouping.names)).sum(axis=0)
        return self._samples.in_parts(self._grouping.parts).exact_squares(report).sum(axis=0)

    def _exact(self, values: Small) -> Split:
        epsilon = self._engine.map().epsilon
        parts = {
            name: Estimate(float(value), 0.0, "exact", "trace", epsilon=epsilon)
            for name, value in zip(self._grouping.names, values, strict=True)
        }
        whole = Estimate(float(values.sum()), 0.0, "exact", "trace", epsilon=epsilon)
        return Split(parts, whole, "trace", self._grouping.words)

    def _run(self, method: str) -> _PartsRun:
        engine, grouping, seed = self._engine, self._grouping, self._options.seed
        n, epsilon = engine.shape[0], engine.map().epsilon
        if method == "per-sample":
            samples = self._samples
            if samples is None:
                raise ValueError("method 'per-sample' does not apply: the samples are coupled; use 'gram'")
            if grouping.words == "output":
                raise ValueError("by='output' needs one-hot probes; use method='exact'")
            parts = None if grouping.words == "sample" else samples.in_parts(grouping.parts)

            def draw(start: int, stop: int) -> Small:
                probes = normal_probes(n, start, stop, seed=seed, stream=STREAM)
                # (k, samples, parts), where every sample is a part or has parts.
                return _by_sample(samples, parts, probes)

            return _PartsRun(draw, method, seed, epsilon, independent=parts is None)
        if grouping.words in ("sample", "output"):
            raise ValueError(f"by={grouping.words!r} needs samples on their own; use method='exact'")
        return _PartsRun(
            lambda i, j: _whole_squares(engine, grouping, seed, i, j)[:, None, :], method, seed, epsilon
        )


def _by_sample(samples: Samples, parts: SampleParts | None, probes: NDArray[np.floating[Any]]) -> Small:
    if parts is None:
        squares = samples.squares(probes)
        return squares[:, None, :]
    return parts.squares(probes)


def _whole_squares(engine: Engine, grouping: Grouping, seed: int | None, start: int, stop: int) -> Small:
    """‖Jᵀω‖² of every part for probes ω of the whole batch, or for unit vectors (``seed=None``): (k, L)."""
    n = engine.shape[0]
    found = []
    for first in range(start, stop, 64):
        last = min(first + 64, stop)
        if seed is None:
            probes = np.eye(n, last - first, -first)
        else:
            probes = sphere_probes(n, first, last, seed=seed, stream=_STREAM)
        rows = np.asarray(engine.map().T @ probes, dtype=np.float64)
        squares = np.zeros((last - first, len(grouping.names)))
        place = 0
        for name, shape in engine.parameters.items():
            own = rows[place : place + math.prod(shape)]
            squares[:, grouping.parts[name]] += np.einsum("pk,pk->k", own, own)
            place += math.prod(shape)
        found.append(squares)
    return np.concatenate(found)


class _PartsRun(HutchinsonRun):
    """The whole as a run, which keeps its parts.

    Args:
        draw: Samples of the parts, shape (k, strata, parts), which all add up.
        method: Its name.
        seed: Of the probes.
        epsilon: Relative rounding error.
        independent: Whether the parts of the one stratum have probes of their own.
    """

    def __init__(
        self,
        draw: Callable[[int, int], Small],
        method: str,
        seed: int,
        epsilon: float,
        independent: bool = False,
    ) -> None:
        self._drawn: list[Small] = []

        def flat(start: int, stop: int) -> Small:
            fresh = draw(start, stop)
            self._drawn.append(fresh)
            return fresh[:, 0] if independent else fresh.sum(axis=2)

        super().__init__(flat, method=method, seed=seed, epsilon=epsilon)

        def again(values: Small) -> HutchinsonRun:
            return HutchinsonRun(lambda i, j: values[i:j], method=method, seed=seed, epsilon=epsilon)

        self._make = again

    def parts(self) -> Sequence[Estimate]:
        """An estimate a part."""
        values = np.concatenate(self._drawn)
        found = []
        for part in range(values.shape[2]):
            run = self._make(np.ascontiguousarray(values[:, :, part]))
            run.grow(len(values))
            found.append(run.result())
        return found
