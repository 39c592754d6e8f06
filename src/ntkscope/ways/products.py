"""Which methods there are, and how a name becomes a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkscope.operators.space import Map, as_map
from ntkscope.results import Cost, Estimate, Measurement
from ntkscope.runs.drive import Meter, Run
from ntkscope.runs.exact import ExactFactorRun, ExactRun
from ntkscope.runs.gram import GramRun
from ntkscope.runs.group import Fixed, GroupRun, ProductMap, power_estimate
from ntkscope.runs.hutchinson import HutchinsonRun, factor_draw, two_sided_draw
from ntkscope.runs.hutchpp import HutchPlusPlusRun
from ntkscope.runs.moments import METRICS, Moments, estimate_metric
from ntkscope.runs.nystrom import NystromRun
from ntkscope.runs.sketch import SketchRun

__all__ = ["METHODS", "Request", "check_seed", "make_runs"]

_EVERY = ("auto", "exact", "sketch", "nystrom", "gram", "hutch++")

#: The methods of every metric. For one kernel's trace "xtrace" is "sketch", "xnystrace" "nystrom".
METHODS: dict[str, tuple[str, ...]] = {
    "trace": (*_EVERY, "xnystrace", "xtrace", "hutchinson", "rhutch", "fhutch"),
    "frobenius_norm": _EVERY,
    "effective_rank": _EVERY,
    "inner_product": _EVERY,
    "alignment": _EVERY,
    "measure": _EVERY,
    "measure_all": ("auto", "exact", "sketch", "nystrom", "gram"),
}


@dataclass(frozen=True)
class Request:
    """What is to be estimated, of which kernels, and how.

    Attributes:
        metric: A key of :data:`METHODS`.
        operators: The kernels as the caller gave them.
        method: A method of this metric.
        seed: Of every probe.
        trace_run: Where the trace comes from, if not from the kernel's products.
    """

    metric: str
    operators: Sequence[Any]
    method: str
    seed: int
    trace_run: Run[Estimate] | Estimate | None = None

    def __post_init__(self) -> None:
        names = METHODS[self.metric]
        if self.method not in names:
            raise ValueError(
                f"unknown method {self.method!r} for {self.metric}; choose one of "
                + ", ".join(map(repr, names))
            )
        check_seed(self.seed)


def check_seed(seed: Any) -> None:
    """An error for what the probes cannot be drawn from.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is negative, or has more than 64 bits.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an int, found {seed!r}; pass a number such as seed=0")
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}; pass a number such as seed=0")
    if seed >= 1 << 64:
        raise ValueError(f"seed must have at most 64 bits, found {seed}; pass a number such as seed=0")


def make_runs(request: Request) -> tuple[Run[Any], Run[Any] | None]:
    """The run of a request, and the exact run that a large budget turns it into.

    Raises:
        TypeError: If an operator is none, or lacks the mode that the method needs.
        ValueError: If an operator is not square, or sizes differ.
    """
    if request.method in ("rhutch", "fhutch"):
        return _factor_runs(request)
    if request.method == "gram":
        return _gram_run(request), None
    maps = _square_maps(request.operators)
    meter = Meter(maps)
    exact = ExactRun(maps, _finish(request, "exact", meter))
    if request.method == "exact":
        return exact, exact
    if request.method == "hutchinson":
        draw = two_sided_draw(maps[0], seed=request.seed)
        epsilon = maps[0].epsilon
        return HutchinsonRun(draw, method="hutchinson", cost=meter, seed=request.seed, epsilon=epsilon), exact
    if request.method == "hutch++":
        return _hutchpp_run(request, maps, meter), exact
    return _shared_run(request, maps, meter), exact


_SHARED: dict[str, type[SketchRun[Any]] | type[NystromRun[Any]]] = {
    "sketch": SketchRun,
    "xtrace": SketchRun,
    "nystrom": NystromRun,
    "xnystrace": NystromRun,
}


def _shared_run(request: Request, maps: list[Map], meter: Meter) -> Run[Any]:
    """Every metric from shared products, with the trace from elsewhere if there is a source."""
    method = request.method
    if method == "auto":
        # Nyström spends every product on a probe; the sketch's power pays in squares of kernels.
        method = "xnystrace" if request.metric == "trace" else "sketch"
    run = _SHARED[method](maps, _finish(request, method, meter), seed=request.seed)
    return _with_trace(request, run, meter)


def _with_trace(request: Request, run: Run[Any], meter: Meter) -> Run[Any]:
    """The run with its effective rank made from another source of the trace."""
    source = _trace_part(request)
    if source is None or request.metric not in ("effective_rank", "measure"):
        return run

    def finish(parts: list[Any]) -> Any:
        trace, found = parts
        cost = meter() + dataclasses.replace(trace.cost, seconds=0.0)
        norm = found if isinstance(found, Estimate) else found.frobenius_norm
        rank = power_estimate(
            [trace, norm],
            [2, -2],
            method=f"{norm.method}, trace by {trace.method}",
            quantity="effective_rank",
            cost=cost,
            seed=request.seed,
        )
        if isinstance(found, Estimate):
            return rank
        return found.with_estimates({"trace": trace, "effective_rank": rank}, cost)

    return GroupRun([source, run], [0 if isinstance(source, Fixed) else 1, 3], finish)


def _gram_run(request: Request) -> Run[Any]:
    maps = [factor_map(operator, "gram") for operator in request.operators]
    sizes = [operator.shape[1] for operator in maps]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"kernels must act on the same state, found sizes {sizes}; use the same inputs and outputs"
        )
    meter = Meter(maps)
    run = GramRun(maps, _finish(request, "gram", meter), seed=request.seed)
    return _with_trace(request, run, meter)


def _square_maps(operators: Sequence[Any]) -> list[Map]:
    """The operators as maps of one size; the same object gives the same map."""
    made: dict[int, Map] = {}
    maps = [made.setdefault(id(operator), as_map(operator)) for operator in operators]
    for operator in maps:
        if operator.shape[0] != operator.shape[1]:
            raise ValueError(
                f"a kernel is square, found shape {operator.shape}; pass K = J Jᵀ (an NTK), not the Jacobian"
            )
        if operator.shape != maps[0].shape:
            raise ValueError(
                f"kernels must act on the same state, found shapes {maps[0].shape} and {operator.shape}; "
                "use the same inputs and outputs for both"
            )
    return maps


_MODES = {
    "rhutch": ("_reverse_map", "reverse mode (Jᵀz)"),
    "fhutch": ("_forward_map", "forward mode (Ju)"),
}


def factor_map(operator: Any, method: str) -> Map:
    """J or Jᵀ of an operator, for the methods that use one mode alone.

    Raises:
        TypeError: If the operator does not offer it.
    """
    name, words = _MODES["fhutch" if method == "fhutch" else "rhutch"]
    if not hasattr(operator, name):
        raise TypeError(
            f"method {method!r} needs {words}, which {type(operator).__name__} does not offer; "
            "pass an NTK, or use method='hutch++'"
        )
    view: Map = getattr(operator, name)()
    return view


def _factor_runs(request: Request) -> tuple[Run[Any], Run[Any]]:
    factor = factor_map(request.operators[0], request.method)
    meter = Meter([factor])
    draw = factor_draw(factor, seed=request.seed)
    run = HutchinsonRun(draw, method=request.method, cost=meter, seed=request.seed, epsilon=factor.epsilon)
    return run, ExactFactorRun(factor, meter)


def _finish(request: Request, method: str, meter: Callable[[], Cost]) -> Callable[[Moments], Any]:
    """From moments to what the caller asked for."""
    seed = None if method == "exact" else request.seed

    def metric(moments: Moments, name: str, *kernels: int) -> Estimate:
        return estimate_metric(moments, name, kernels, method=method, cost=meter(), seed=seed)

    def measurement(moments: Moments, a: int, others: Sequence[int]) -> Measurement:
        return Measurement(
            {name: metric(moments, name, a) for name in ("trace", "frobenius_norm", "effective_rank")},
            {"alignment": [metric(moments, "alignment", a, b) for b in others]},
            meter(),
        )

    count = len(request.operators)
    if request.metric == "effective_rank" and request.trace_run is not None and method != "exact":
        return lambda moments: metric(moments, "frobenius_norm", 0)
    if request.metric == "measure":
        return lambda moments: measurement(moments, 0, range(1, count))
    if request.metric == "measure_all":
        return lambda moments: [
            measurement(moments, a, [b for b in range(count) if b != a]) for a in range(count)
        ]
    return lambda moments: metric(moments, request.metric, *range(METRICS[request.metric]))


def _trace_part(request: Request) -> Run[Estimate] | None:
    source = request.trace_run
    return Fixed(source) if isinstance(source, Estimate) else source


def _hutchpp_run(request: Request, maps: list[Map], meter: Meter) -> Run[Any]:
    """Separate Hutch++ runs on K, K², K₁K₂, as in arXiv 2511.10796, that share no randomness."""
    parts: dict[tuple[int, ...], Run[Estimate]] = {}
    shares: dict[tuple[int, ...], int] = {}

    def need(*kernels: int) -> None:
        if kernels in parts:
            return
        own = _trace_part(request) if kernels == (0,) else None
        operator = maps[0] if len(kernels) == 1 else ProductMap(maps[kernels[0]], maps[kernels[1]])
        options: dict[str, Any] = {"seed": request.seed, "stream": 2 * len(parts), "cost": meter}
        parts[kernels] = own or HutchPlusPlusRun(operator, products_per_probe=len(kernels), **options)
        shares[kernels] = 0 if isinstance(own, Fixed) else len(kernels)

    count = len(maps)
    if request.metric in ("trace", "effective_rank", "measure"):
        need(0)
    if request.metric in ("frobenius_norm", "effective_rank", "alignment", "measure"):
        need(0, 0)
    if request.metric == "inner_product":
        need(0, 1)
    if request.metric in ("alignment", "measure"):
        for b in range(1, count):
            need(0, b)
            need(b, b)
    names = list(parts)

    def finish(estimates: list[Estimate]) -> Any:
        known = dict(zip(names, estimates, strict=True))
        return _paper_metrics(request, known, meter())

    return GroupRun(list(parts.values()), list(shares.values()), finish)


def _paper_metrics(request: Request, known: dict[tuple[int, ...], Estimate], cost: Cost) -> Any:
    """The metric, or all of them, from independent estimates of traces of products."""

    def metric(name: str, powers: dict[tuple[int, ...], float]) -> Estimate:
        return power_estimate(
            [known[kernels] for kernels in powers],
            list(powers.values()),
            method="hutch++",
            quantity=name,
            cost=cost,
            seed=request.seed,
        )

    def alignment(b: int) -> Estimate:
        return metric("alignment", {(0, b): 1, (0, 0): -0.5, (b, b): -0.5})

    simple: dict[str, Callable[[], Estimate]] = {
        "trace": lambda: dataclasses.replace(known[(0,)], cost=cost),
        "frobenius_norm": lambda: metric("frobenius_norm", {(0, 0): 0.5}),
        "effective_rank": lambda: metric("effective_rank", {(0,): 2, (0, 0): -1}),
        "inner_product": lambda: metric("inner_product", {(0, 1): 1}),
        "alignment": lambda: alignment(1),
    }
    if request.metric != "measure":
        return simple[request.metric]()
    count = max(kernels[-1] for kernels in known) + 1
    return Measurement(
        {name: simple[name]() for name in ("trace", "frobenius_norm", "effective_rank")},
        {"alignment": [alignment(b) for b in range(1, count)]},
        cost,
    )
