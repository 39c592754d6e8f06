"""From wanted metrics to numbers: the moments they need, the way to these, a run, a result."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntkscope.engines.base import Refusal
from ntkscope.journal import active, keeping
from ntkscope.metrics import METRICS, Wanted, evaluate, kernels_of, moments_of
from ntkscope.operators.ledger import Meter
from ntkscope.progress import ProgressListener, progress_bar
from ntkscope.results import Cost, Estimate, Measurement, Measurements
from ntkscope.runs.drive import Run, drive
from ntkscope.runs.group import Fixed, GroupRun, MappedRun, Priced
from ntkscope.runs.moments import MomentSource
from ntkscope.runs.sources import TraceFromElsewhere, TracesApart
from ntkscope.settings import DEFAULT_RTOL, Options
from ntkscope.ways.base import Problem, Start, Way, per_sample_of
from ntkscope.ways.identity import identity_of
from ntkscope.ways.per_sample import PerSample, PerSampleForward
from ntkscope.ways.plan import Plan, exact_instead, make_plan, ways_of
from ntkscope.ways.table import methods_of

__all__ = ["METHODS", "Request", "measure", "measure_all", "plan", "single"]

#: What each metric can be measured by, and all of them together.
METHODS: dict[str, tuple[str, ...]] = {
    quantity: methods_of(quantity) for quantity in (*METRICS, "measure", "measure_all")
}

_TRACE_WAYS = {"per-sample": PerSample(), "per-sample-forward": PerSampleForward()}


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be measured, of which kernels, by which method.

    Attributes:
        quantity: A metric's name, ``"measure"`` or ``"measure_all"``.
        operators: The kernels: NTKs, matrices, anything with ``shape`` and ``@``.
        wanted: The metrics, each with the numbers of its kernels.
        method: One of :data:`METHODS`.
        trace_method: Where the trace of the first kernel comes from, if not from its products.
        trace_run: The same as an estimate that is known, or a run that grows along.
    """

    quantity: str
    operators: tuple[Any, ...]
    wanted: tuple[Wanted, ...]
    method: str
    trace_method: str | None = None
    trace_run: Run[Estimate] | Estimate | None = None

    def __post_init__(self) -> None:
        for metric, _ in self.wanted:
            if metric not in METRICS:
                raise ValueError(f"unknown metric {metric!r}; choose one of " + ", ".join(map(repr, METRICS)))
        known = methods_of(self.quantity)
        if self.method not in known:
            raise ValueError(
                f"unknown method {self.method!r} for {self.quantity}; choose one of "
                + ", ".join(map(repr, known))
            )
        if self.trace_method not in (None, "exact", *_TRACE_WAYS):
            raise ValueError(
                f"unknown trace_method {self.trace_method!r}; choose one of 'exact', "
                + ", ".join(map(repr, _TRACE_WAYS))
                + ", or None for the trace from the same products"
            )

    def problem(self, options: Options) -> Problem:
        """The moments that are needed."""
        return Problem(self.operators, moments_of(self.wanted), options.rtol or DEFAULT_RTOL)


def single(metric: str, operators: Sequence[Any], method: str, options: Options, **sources: Any) -> Estimate:
    """One metric of a kernel, or of two.

    Args:
        metric: Its name.
        operators: The kernel, and the other one where the metric takes two.
        method: How.
        options: How far.
        **sources: Fields of :class:`Request` that say where the trace comes from.
    """
    if metric in METRICS and len(operators) != kernels_of(metric):
        raise ValueError(f"{metric} takes {kernels_of(metric)} kernels, found {len(operators)}")
    wanted = ((metric, tuple(range(len(operators)))),)
    request = Request(metric, tuple(operators), wanted, method, **sources)
    result: Estimate = _run(request, options, lambda found, cost: found[0])
    return result


def measure(
    operators: Sequence[Any], metrics: Sequence[str], method: str, options: Options, **sources: Any
) -> Measurement:
    """Metrics of the first kernel, and of its pairs with each of the others, from shared work.

    Args:
        operators: The kernels.
        metrics: Which metrics; those of two kernels are measured for every other one.
        method: How.
        options: How far; a tolerance is met when every metric meets it.
        **sources: Fields of :class:`Request` that say where the trace comes from.
    """
    wanted = _wanted(metrics, 0, range(1, len(operators)))
    request = Request("measure", tuple(operators), wanted, method, **sources)
    result: Measurement = _run(
        request, options, lambda found, cost: _measurement(metrics, wanted, found, cost)
    )
    return result


def measure_all(
    operators: Sequence[Any], metrics: Sequence[str], method: str, options: Options, **sources: Any
) -> Measurements:
    """Metrics of every kernel and of every pair, each kernel's work done once.

    Args:
        operators: The kernels.
        metrics: Which metrics.
        method: How.
        options: How far; a tolerance is met when every metric of every kernel meets it.
        **sources: Fields of :class:`Request`.
    """
    every = range(len(operators))
    parts = [_wanted(metrics, a, [b for b in every if b != a]) for a in every]
    wanted = tuple(one for part in parts for one in part)
    request = Request("measure_all", tuple(operators), wanted, method, **sources)

    def form(found: list[Estimate], cost: Cost) -> Measurements:
        known = iter(found)
        return Measurements(_measurement(metrics, part, [next(known) for _ in part], cost) for part in parts)

    result: Measurements = _run(request, options, form)
    return result


def plan(operators: Sequence[Any], quantity: str, rtol: float) -> Plan:
    """How a metric of models' kernels would be measured to a tolerance, and what other ways would cost."""
    names = [quantity] if quantity in METRICS else list(METRICS)
    count = len(operators)
    wanted: list[Wanted] = []
    for name in names:
        pairs = kernels_of(name) > 1
        wanted += [(name, (0, other)) for other in range(1, count)] if pairs else [(name, (0,))]
    if not wanted:
        # An alignment without another kernel costs what the norm does.
        wanted = [("frobenius_norm", (0,))]
    problem = Problem(tuple(operators), moments_of(wanted), rtol)
    with contextlib.ExitStack() as stack:
        for engine in problem.engines or ():
            stack.enter_context(engine.session())
        return make_plan(quantity, problem)


def _wanted(metrics: Iterable[str], kernel: int, others: Iterable[int]) -> tuple[Wanted, ...]:
    """The metrics of a kernel, and those of its pairs."""
    wanted: list[Wanted] = []
    for metric in metrics:
        pairs = metric in METRICS and kernels_of(metric) > 1
        wanted += [(metric, (kernel, other)) for other in others] if pairs else [(metric, (kernel,))]
    return tuple(wanted)


def _measurement(
    metrics: Sequence[str], wanted: Sequence[Wanted], found: Sequence[Estimate], cost: Cost
) -> Measurement:
    own: dict[str, Estimate] = {}
    pairs: dict[str, list[Estimate]] = {metric: [] for metric in metrics if kernels_of(metric) > 1}
    for (metric, kernels), estimate in zip(wanted, found, strict=True):
        if len(kernels) == 1:
            own[metric] = estimate
        else:
            pairs[metric].append(estimate)
    return Measurement(own, pairs, cost)


def _run(request: Request, options: Options, form: Callable[[list[Estimate], Cost], Any]) -> Any:
    """Starts the best way that starts, drives it, and makes the result of its moments."""
    problem = request.problem(options)
    if options.resume is not None and not active():
        asked = {"metrics": request.wanted, "method": request.method, "trace_method": request.trace_method}
        with keeping(options.resume, identity_of(problem, asked, options)):
            return _run(request, options, form)
    meter = Meter(problem.ledgers())
    epsilon = max(operator.epsilon for operator in problem.maps)
    spent_before = request.trace_run.cost if isinstance(request.trace_run, Estimate) else Cost()
    with contextlib.ExitStack() as stack:
        for engine in problem.engines or ():
            stack.enter_context(engine.session())
        listener = stack.enter_context(progress_bar(options.progress, request.quantity))
        way, start = _start(request, problem, options, listener)

        def finish(source: MomentSource, name: str, seed: int | None) -> Any:
            cost = dataclasses.replace(meter() + spent_before, seconds=meter().seconds)
            found = [
                evaluate(source, metric, kernels, method=name, cost=cost, seed=seed, epsilon=epsilon)
                for metric, kernels in request.wanted
            ]
            return form(found, cost)

        if way.is_exact and way.needs_model:
            start.run.grow(start.run.minimum)
            return finish(start.run.result(), way.name, None)
        run = MappedRun(start.run, lambda source: finish(source, way.name, options.seed))
        exact = _exact_instead(request, problem, options, way, start, listener)
        instead = (
            None if exact is None else MappedRun(exact.run, lambda source: finish(source, exact.name(), None))
        )
        return drive(run, options, exact=instead, progress=listener.listener)


@dataclass(frozen=True)
class _Instead:
    """An exact run in place of an estimate, and how it is named where it has run."""

    name: Callable[[], str]
    run: Run[MomentSource]


def _exact_instead(
    request: Request,
    problem: Problem,
    options: Options,
    way: Way,
    start: Start,
    listener: ProgressListener,
) -> _Instead | None:
    """What is run in place of an estimate that would cost as much.

    A method that was asked for by name is taken at its word until its products would give every
    column of the kernels; random probes of single samples, and what ``"auto"`` chose, until the
    cheapest exact way costs as much.
    """
    if problem.engines is None:
        return None if start.exact is None else _Instead(lambda: "exact", start.exact)
    if way.needs_model and not options.to_tolerance:
        return None
    best = functools.cache(lambda: exact_instead(problem, way))
    price = None
    if not way.needs_model and request.method != "auto":
        if start.exact is None:
            return None
        # The structure of a model is looked for only where this is paid.
        price = start.exact.minimum
    # Of several traces each has its own run.
    each = 1 if problem.of_products else len(problem.operators)
    run = Priced(
        lambda: _begin(best().way, problem, options.seed, listener).run,
        each * best().products if price is None else price,
    )
    return _Instead(lambda: best().way.name, run)


def _start(
    request: Request, problem: Problem, options: Options, listener: ProgressListener
) -> tuple[Way, Start]:
    """The best way that starts, with the trace from elsewhere where that is better."""
    failure: NotImplementedError | None = None
    for way in ways_of(request.quantity, problem, request.method, options):
        try:
            start = _begin(way, problem, options.seed, listener)
        except NotImplementedError as error:
            # Only trying tells whether there are forward products; what is next does without.
            failure = failure or error
            continue
        source = (
            None if way.is_exact or way.needs_model else _trace_source(request, problem, options, listener)
        )
        if source is None:
            return way, start
        return way, _with_trace(start, source, _other_traces(request, problem, options))
    assert failure is not None
    raise failure


def _begin(way: Way, problem: Problem, seed: int, listener: ProgressListener) -> Start:
    """The run of a way; of several traces one run a kernel, side by side and all by this way."""
    if problem.of_products or len(problem.operators) == 1:
        return way.start(problem, seed, listener)
    parts = [way.start(one, seed, listener) for one in problem.apart()]
    shares = [1] * len(parts)
    exact = [part.exact for part in parts if part.exact is not None]
    instead = GroupRun(exact, shares, TracesApart) if len(exact) == len(parts) else None
    return Start(GroupRun([part.run for part in parts], shares, TracesApart), instead)


def _trace_source(
    request: Request, problem: Problem, options: Options, listener: ProgressListener
) -> Run[Estimate] | None:
    """Where the trace of the first kernel comes from, if not from the products that are run anyway."""
    if (0,) not in problem.moments or not problem.of_products:
        return None
    if request.trace_run is not None:
        known = request.trace_run
        return Fixed(known) if isinstance(known, Estimate) else known
    if request.trace_method == "exact":
        quiet = dataclasses.replace(options, products=None, progress=False)
        return Fixed(single("trace", request.operators[:1], "exact", quiet))
    first = Problem(problem.operators[:1], ((0,),), problem.rtol)
    name = request.trace_method
    if name is None:
        better = request.quantity != "measure_all" and not isinstance(first.samples, Refusal)
        name = "per-sample" if request.method == "auto" and better else None
    if name is None:
        return None
    (samples,) = per_sample_of(first, name)
    kernel = first.maps[0]
    return _TRACE_WAYS[name].trace_run(samples, kernel.shape[0], options.seed, kernel.epsilon)


def _other_traces(request: Request, problem: Problem, options: Options) -> dict[int, Estimate]:
    """Exact traces of the other kernels, where that of the first is asked for: bounds need them all."""
    paired = {kernel for moment in problem.moments if len(moment) == 2 for kernel in moment} - {0}
    if request.trace_method != "exact" or isinstance(problem.samples, Refusal):
        return {}
    quiet = dataclasses.replace(options, products=None, progress=False)
    return {kernel: single("trace", [request.operators[kernel]], "exact", quiet) for kernel in sorted(paired)}


def _with_trace(start: Start, source: Run[Estimate], others: Mapping[int, Estimate]) -> Start:
    """The run with the trace of the first kernel from another source; it takes a quarter of the products.

    Args:
        start: The run.
        source: The trace of the first kernel.
        others: Exact traces of others.
    """

    def joined(parts: list[Any]) -> MomentSource:
        trace, rest = parts
        for kernel, known in others.items():
            rest = TraceFromElsewhere(rest, known, kernel)
        return TraceFromElsewhere(rest, trace)

    shares = [0 if isinstance(source, Fixed) else 1, 3]
    return Start(GroupRun([source, start.run], shares, joined), start.exact)
