"""From a metric and a method's name to the computation: structure first, then products."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ntkscope import estimators
from ntkscope.engines.torch.gradients.sides import widened
from ntkscope.engines.torch.maps import ForwardMap
from ntkscope.engines.torch.samples.tiles import BlockSource, SampleRows, WholeRows, kernel_inner_products
from ntkscope.operators.probes import random_signs
from ntkscope.progress import progress_bar
from ntkscope.results import Cost, Estimate, Measurement, Measurements
from ntkscope.runs.drive import Meter, check_limits, drive
from ntkscope.runs.hutchinson import HutchinsonRun
from ntkscope.runs.moments import METRICS, Moments, estimate_metric
from ntkscope.ways import plan as planner
from ntkscope.ways.products import METHODS as _PRODUCT_METHODS
from ntkscope.ways.products import check_seed

if TYPE_CHECKING:
    from ntkscope.ntk import NTK

__all__ = ["METHODS", "exact_moments", "make_plan", "measure", "measure_all", "per_sample_run", "single"]

#: What each metric can be measured by.
METHODS: dict[str, tuple[str, ...]] = {
    metric: (*names, "per-sample", "per-sample-forward") if metric == "trace" else names
    for metric, names in _PRODUCT_METHODS.items()
}

_PER_SAMPLE_STREAM = 20
_PER_SAMPLE_FORWARD_STREAM = 21


def single(
    ntk: NTK,
    metric: str,
    others: Sequence[Any],
    method: str,
    products: int | None,
    seed: int,
    progress: Any,
    growth: dict[str, Any],
    trace_method: str | None = None,
) -> Estimate:
    """One metric of ``ntk`` (and another kernel)."""
    _check(metric, method, products, seed, growth)
    if metric == "trace":
        return _trace(ntk, method, products, seed, progress, growth)
    way = _kernel_way(ntk, metric, others, method, products, growth)
    if way.exact:
        meter = _meter([ntk, *others])
        moments = exact_moments([ntk, *others], way.name, progress)
        kernels = tuple(range(METRICS[metric]))
        return estimate_metric(moments, metric, kernels, method=way.name, cost=meter(), seed=None)
    function = getattr(estimators, metric)
    if metric == "effective_rank":
        growth = growth | {"trace_run": _trace_run(ntk, method, seed, trace_method)}
    method = _possible(method, [ntk, *others])
    with progress_bar(progress, metric) as report:
        estimate: Estimate = function(
            ntk, *others, method=method, products=products, seed=seed, progress=report.listener, **growth
        )
    return estimate


def measure(
    ntk: NTK,
    others: Sequence[Any],
    method: str,
    products: int | None,
    seed: int,
    progress: Any,
    growth: dict[str, Any],
    trace_method: str | None = None,
) -> Measurement:
    """Every metric of ``ntk``, and its alignment with each of the others, from shared work."""
    _check("measure", method, products, seed, growth)
    way = _kernel_way(ntk, "measure", others, method, products, growth)
    if way.exact:
        return _measure_exactly([ntk, *others], way.name, progress)(0, range(1, len(others) + 1))
    with progress_bar(progress, "measure") as report:
        return estimators.measure(
            ntk,
            others,
            _possible(method, [ntk, *others]),
            products,
            seed,
            trace_run=_trace_run(ntk, method, seed, trace_method),
            progress=report.listener,
            **growth,
        )


def measure_all(
    kernels: Sequence[NTK],
    method: str,
    products: int | None,
    seed: int,
    progress: Any,
    growth: dict[str, Any],
) -> Measurements:
    """Every metric of every kernel, and every alignment, each kernel's work done once."""
    _check("measure_all", method, products, seed, growth)
    way = _kernel_way(kernels[0], "measure_all", kernels[1:], method, products, growth)
    every = range(len(kernels))
    if way.exact:
        one = _measure_exactly(kernels, way.name, progress)
        return Measurements(one(a, [b for b in every if b != a]) for a in every)
    method = _possible(method, kernels)
    with progress_bar(progress, "measure") as report:
        return Measurements(
            estimators.measure_all(kernels, method, products, seed, progress=report.listener, **growth)
        )


def _measure_exactly(
    kernels: Sequence[NTK], way: str, progress: Any
) -> Callable[[int, Sequence[int]], Measurement]:
    """The exact measurement of a kernel beside some of the others, by their numbers."""
    meter = _meter(kernels)
    moments = exact_moments(kernels, way, progress)
    cost = meter()

    def metric(name: str, *among: int) -> Estimate:
        return estimate_metric(moments, name, among, method=way, cost=cost, seed=None)

    def one(a: int, others: Sequence[int]) -> Measurement:
        return Measurement(
            metric("trace", a),
            metric("frobenius_norm", a),
            metric("effective_rank", a),
            [metric("alignment", a, b) for b in others],
            cost,
        )

    return one


def _check(metric: str, method: str, products: int | None, seed: int, growth: dict[str, Any]) -> None:
    """The errors that estimators raise, before an exact way is taken that would ask for nothing."""
    if method not in METHODS[metric]:
        raise ValueError(
            f"unknown method {method!r} for {metric}; choose one of "
            + ", ".join(repr(name) for name in METHODS[metric])
        )
    check_seed(seed)
    check_limits(products=products, **growth)


# The trace.


def _trace(
    ntk: NTK, method: str, products: int | None, seed: int, progress: Any, growth: dict[str, Any]
) -> Estimate:
    if method in ("auto", "exact"):
        rtol = growth.get("rtol") or 0.01
        ways = _trace_ways(ntk, rtol)
        if method == "auto" and products is not None and not _pays_for_exact(ntk, products):
            ways = [way for way in ways if not way.exact]
        choice = planner.plan("trace", ways, exact_only=method == "exact").choice
        if choice.exact:
            return _exact_trace(ntk, choice.name, progress)
        method = choice.name if choice.name in _PER_SAMPLE_RUNS else "auto"
    with progress_bar(progress, "trace") as report:
        if method in _PER_SAMPLE_RUNS:
            run = _PER_SAMPLE_RUNS[method](ntk, seed)
            limits = {"rtol": 0.01} if products is None and not _has_tolerance(growth) else {}
            return drive(run, products=products, progress=report.listener, **(limits | growth))
        return estimators.trace(
            ntk, _possible(method, [ntk]), products, seed, progress=report.listener, **growth
        )


def _pays_for_exact(ntk: NTK, products: int) -> bool:
    """Whether a budget of random probes would buy every one-hot probe too."""
    jacobian, _ = ntk._structure()
    return products >= (ntk.n if jacobian is None else jacobian.outputs)


def _possible(method: str, kernels: Sequence[Any]) -> str:
    """``"auto"``, or the best method by reverse mode alone where a model has no products Ju."""
    if method != "auto" or not all(_is_ntk(kernel) for kernel in kernels):
        return method
    try:
        for kernel in kernels:
            kernel._jacobian.check_forward()
    except NotImplementedError:
        return "gram"
    return method


def _has_tolerance(growth: dict[str, Any]) -> bool:
    return growth.get("rtol") is not None or growth.get("atol") is not None


def per_sample_run(ntk: NTK, seed: int) -> HutchinsonRun:
    """Hutchinson's trace with independent signs for every sample: tr K = Σ_b E‖J_bᵀz_b‖².

    The probes' cross-terms between samples, which only add noise, are never formed:
    the variance falls from 2(‖K‖²_F − ΣK_ii²) to 2(Σ_b‖K_bb‖²_F − ΣK_ii²). Two probes of a
    batch tell it already, since every sample shows its own part of it.

    Raises:
        ValueError: If the samples are coupled.
    """
    jacobian = ntk._sample_jacobian()
    epsilon = torch.finfo(ntk.dtype).eps

    def draw(start: int, stop: int) -> NDArray[np.float64]:
        signs = random_signs(ntk.n, start, stop, seed=seed, stream=_PER_SAMPLE_STREAM)
        z = torch.from_numpy(signs.T).to(ntk.device, ntk.dtype)
        return np.asarray(jacobian.squared_norms(z).cpu().numpy(), dtype=np.float64)

    return HutchinsonRun(draw, method="per-sample", cost=_meter([ntk]), seed=seed, epsilon=epsilon)


def per_sample_forward_run(ntk: NTK, seed: int) -> HutchinsonRun:
    """Its forward twin, with a parameter direction for every sample: tr K = Σ_b E‖J_b u_b‖².

    The variance is 2(Σ_b‖K_bb‖²_F − Σ_b Σ_j (J_bᵀJ_b)²_jj).

    Raises:
        ValueError: If the samples are coupled, or the model has no forward mode.
    """
    jacobian, tangents = ntk._sample_jacobian(), ntk._sample_tangents()
    batch = jacobian.batch

    def directions(offset: int, probes: range, samples: range) -> torch.Tensor:
        # A column of signs for every probe and sample, whatever the chunks.
        columns = [
            random_signs(
                tangents.size,
                (offset + probe) * batch + samples.start,
                (offset + probe) * batch + samples.stop,
                seed=seed,
                stream=_PER_SAMPLE_FORWARD_STREAM,
            ).T
            for probe in probes
        ]
        return torch.from_numpy(np.stack(columns)).to(ntk.device, ntk.dtype)

    def draw(start: int, stop: int) -> NDArray[np.float64]:
        norms = tangents.squared_norms(stop - start, functools.partial(directions, start))
        jacobian.jvps += stop - start
        return np.asarray(norms.cpu().numpy(), dtype=np.float64)

    epsilon = torch.finfo(ntk.dtype).eps
    return HutchinsonRun(draw, method="per-sample-forward", cost=_meter([ntk]), seed=seed, epsilon=epsilon)


_PER_SAMPLE_RUNS = {"per-sample": per_sample_run, "per-sample-forward": per_sample_forward_run}


def _trace_run(ntk: NTK, method: str, seed: int, trace_method: str | None) -> HutchinsonRun | Estimate | None:
    """The better trace inside the effective rank, where it was asked for or the choice is ours."""
    if trace_method is None:
        structured = method == "auto" and ntk._structure()[0] is not None
        return per_sample_run(ntk, seed) if structured else None
    if trace_method == "exact":
        return ntk.trace("exact")
    if trace_method in _PER_SAMPLE_RUNS:
        return _PER_SAMPLE_RUNS[trace_method](ntk, seed)
    raise ValueError(
        f"unknown trace_method {trace_method!r}; choose one of 'exact', "
        + ", ".join(map(repr, _PER_SAMPLE_RUNS))
        + ", or None for the trace from the same products"
    )


def _exact_trace(ntk: NTK, name: str, progress: Any) -> Estimate:
    meter = _meter([ntk])
    if name == "exact (per sample)":
        with progress_bar(progress, "trace") as report:
            value = float(ntk._sample_jacobian().frobenius_squared(report.fraction).sum())
    elif name == "exact (p JVPs)":
        value = _identity_trace(ForwardMap(ntk._jacobian), progress)
    else:
        value = _whole_trace(ntk, progress)
    return Estimate(value, 0.0, name, "trace", cost=meter())


def _identity_trace(factor: ForwardMap, progress: Any) -> float:
    """‖J‖²_F by forward products with every parameter's direction."""
    total = 0.0
    with progress_bar(progress, "trace") as report:
        for start in range(0, factor.shape[1], 256):
            block = factor.apply(factor.identity(start, min(start + 256, factor.shape[1])))
            total += float(factor.inner(block, block).sum())
            report.fraction(min(start + 256, factor.shape[1]), factor.shape[1])
    return total


def _whole_trace(ntk: NTK, progress: Any) -> float:
    """‖J‖²_F by reverse products with every state's direction."""
    total = 0.0
    with progress_bar(progress, "trace") as report:
        for start in range(0, ntk.n, 256):
            index = torch.arange(start, min(start + 256, ntk.n))
            probes = torch.zeros(len(index), ntk.n, dtype=ntk.dtype, device=ntk.device)
            probes[torch.arange(len(index)), index] = 1
            total += float(ntk._jacobian.vjp_squared_norms(probes).sum())
            report.fraction(int(index[-1]) + 1, ntk.n)
    return total


# Norms, alignments and effective ranks.


def _kernel_way(
    ntk: NTK, metric: str, others: Sequence[Any], method: str, products: int | None, growth: dict[str, Any]
) -> planner.Way:
    """The way to a metric of whole kernels."""
    by_products = planner.Way("products", "", 0.0)
    if method not in ("auto", "exact") or not all(_is_ntk(other) for other in others):
        return by_products
    if method == "auto" and products is not None:
        return by_products
    rtol = growth.get("rtol") or 0.01
    ways = _kernel_ways([ntk, *others], rtol)
    return planner.plan(metric, ways, exact_only=method == "exact").choice


def _is_ntk(other: Any) -> bool:
    return hasattr(other, "_sample_jacobian")


def exact_moments(kernels: Sequence[NTK], name: str, progress: Any = False) -> Moments:
    """Traces tr K_a and products ⟨K_a, K_b⟩ of all kernels, exactly, by one of the exact ways."""
    budget = kernels[0].memory_budget
    with progress_bar(progress, "exact kernels") as report:
        if name == "exact (parameters)":
            return _parameter_inner_products(kernels, report.fraction)
        sources: list[BlockSource] = [
            SampleRows(ntk._sample_jacobian()) if name == "exact (tiles)" else WholeRows(ntk._jacobian)
            for ntk in kernels
        ]
        return Moments(*kernel_inner_products(sources, budget, report.fraction))


def _parameter_inner_products(kernels: Sequence[NTK], report: Callable[[int, int], None]) -> Moments:
    """⟨K_a, K_b⟩ = ‖J_aᵀJ_b‖²_F, and tr K_a = ‖J_a‖²_F, where there are fewer parameters than states."""
    sizes = [ntk.n_params for ntk in kernels]
    first = kernels[0]
    grams = {
        (a, b): widened(torch.zeros(sizes[a], sizes[b], dtype=first.dtype, device=first.device))
        for a in range(len(kernels))
        for b in range(a + 1)
    }
    sources = [WholeRows(ntk._jacobian) for ntk in kernels]
    count = len(sources[0])
    traces = np.zeros(len(kernels))
    blocks = zip(*(source.blocks(0, count) for source in sources), strict=True)
    for number, parts in enumerate(blocks):
        rows = [widened(part.factors[0].rows()[:, 0]) for part in parts]
        for (a, b), gram in grams.items():
            gram.addmm_(rows[a].T, rows[b])
        traces += [float((block * block).sum(dtype=torch.float64)) for block in rows]
        report(number + 1, count)
    inner = np.zeros((len(kernels), len(kernels)))
    for (a, b), gram in grams.items():
        inner[a, b] = inner[b, a] = float((gram * gram).sum(dtype=torch.float64))
    return Moments(traces, inner)


# Plans.


def make_plan(ntk: NTK, metric: str, others: Sequence[NTK], rtol: float) -> planner.Plan:
    """How ``metric`` would be measured to a tolerance, and what the other ways would cost."""
    ways = _trace_ways(ntk, rtol) if metric == "trace" else _kernel_ways([ntk, *others], rtol)
    return planner.plan(metric, ways)


def _trace_ways(ntk: NTK, rtol: float) -> list[planner.Way]:
    jacobian, reason = ntk._structure()
    machine = planner.Machine.timed(ntk.device, ntk.dtype)
    return planner.trace_ways(_sizes(ntk, 1), machine, rtol, "" if jacobian else reason)


def _kernel_ways(kernels: Sequence[NTK], rtol: float) -> list[planner.Way]:
    first = kernels[0]
    machine = planner.Machine.timed(first.device, first.dtype)
    reasons = [reason for ntk in kernels for jacobian, reason in [ntk._structure()] if jacobian is None]
    axes = {ntk._structure()[0].axes for ntk in kernels if ntk._structure()[0]}  # type: ignore[union-attr]
    if not reasons and len({(a.batch, a.state_axis, a.state_shape) for a in axes}) > 1:
        reasons = ["the kernels' samples lie along different axes"]
    sizes = _sizes(first, len(kernels))
    return planner.exact_kernel_ways(sizes, machine, rtol, reasons[0] if reasons else "")


def _sizes(ntk: NTK, kernels: int) -> planner.Sizes:
    jacobian, _ = ntk._structure()
    forward = ntk._function.forward_size
    base = planner.Sizes(
        n=ntk.n,
        p=ntk.n_params,
        batch=1,
        outputs=ntk.n,
        operations=forward.operations,
        elements=forward.elements,
        flops=forward.flops,
        kernels=kernels,
        budget=ntk.memory_budget,
        itemsize=ntk._function.state.element_size(),
    )
    if jacobian is None:
        return base
    return dataclasses.replace(
        base,
        batch=jacobian.batch,
        outputs=jacobian.outputs,
        taps=sum(math.prod(use.tap_shape) for use in jacobian.graph.uses),
        gradient_flops=jacobian.gradient_flops(),
        used=jacobian.used_parameters(),
        general=jacobian.general_size,
        pieces=len(jacobian.graph.pieces),
    )


def _meter(kernels: Sequence[Any]) -> Callable[[], Cost]:
    """What the kernels spend from now on, in VJPs and JVPs."""
    meter = Meter([kernel._as_map() for kernel in kernels if _is_ntk(kernel)])
    measured = [kernel for kernel in kernels if _is_ntk(kernel)]

    def spent() -> tuple[float, float]:
        counts = [kernel._sample_products() for kernel in measured]
        return sum(vjps for vjps, _ in counts), sum(jvps for _, jvps in counts)

    before = spent()

    def cost() -> Cost:
        (vjps, jvps), total = spent(), meter()
        return dataclasses.replace(
            total,
            vjps=total.vjps + round(vjps - before[0]),
            jvps=total.jvps + round(jvps - before[1]),
        )

    return cost
