"""Is every number of a model right, or refused in plain words?"""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fuzz.models import Spec, Subject, build
from ntkscope import NTK, Estimate
from truth.reference import Dense, alignment, dense
from truth.verdict import is_refusal

__all__ = ["Verdict", "judge", "shrink"]

Result = TypeVar("Result")

#: Two-sided probability of six standard errors.
_SIX = 1 - 2e-9

TRACES = (
    *("rhutch", "fhutch", "hutchinson", "hutch++", "xtrace", "xnystrace"),
    *("per-sample", "per-sample-forward", "sketch", "nystrom", "gram"),
)
OF_PRODUCTS = ("per-sample", "hutch++", "sketch", "nystrom", "gram")


@dataclass(frozen=True)
class Verdict:
    """What came of one model.

    Attributes:
        kind: ``"right"``, ``"refused"``, ``"wrong"`` (a number), ``"crashed"`` (an error that is not
            ours), ``"changed"`` (the user's module) or ``"invalid"`` (a model that autograd cannot take).
        detail: The number or the error.
        refusals: The reasons of what was refused.
    """

    kind: str
    detail: str = ""
    refusals: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it counts as a failure."""
        return self.kind in ("wrong", "crashed", "changed")


def judge(spec: Spec) -> Verdict:
    """Measures a model in every way, and compares with autograd on another one made alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            first, second = _reference(spec, trained=False), _reference(spec, trained=True)
        except Exception as error:
            return Verdict("invalid", f"{type(error).__name__}: {_line(error)}")
        return _judge(spec, first, second)


def _reference(spec: Spec, *, trained: bool) -> Dense:
    subject = build(spec, trained=trained)
    found = dense(subject.model, subject.call)
    if not bool(found.jacobian.isfinite().all()):
        raise ValueError("the Jacobian is not finite")
    return found


def _judge(spec: Spec, first: Dense, second: Dense) -> Verdict:
    refusals: list[str] = []
    try:
        subject, other = build(spec), build(spec, trained=True)
        before = _outline(subject)
        with spec.around():
            wrong = _first_wrong(spec, subject, other, first, second, refusals)
        if wrong:
            return Verdict("wrong", wrong, tuple(refusals))
        if _outline(subject) != before:
            return Verdict("changed", "parameters, modes or attributes are others", tuple(refusals))
    except Exception as error:
        if not is_refusal(error):
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.name}"
            return Verdict("crashed", f"{type(error).__name__}: {_line(error)} ({where})", tuple(refusals))
        refusals.append(_line(error))
        return Verdict("refused", _line(error), tuple(refusals))
    return Verdict("right", refusals=tuple(refusals))


def _first_wrong(
    spec: Spec, subject: Subject, other: Subject, first: Dense, second: Dense, refusals: list[str]
) -> str:
    """The first number that is not right; empty if all are."""
    ntk = NTK(subject.model, subject.inputs, **subject.options)
    twin = NTK(other.model, other.inputs, **other.options)
    for name, measure, right in _measures(spec, ntk, twin, first, second):
        estimate = _unless_refused(measure, refusals)
        if estimate is not None and not _agrees(estimate, right, subject.rtol):
            return f"{name}: {estimate!r}, by autograd {right:.10g}"
    return "" if _kernel_products(spec, ntk, first, subject.rtol, refusals) else "Kz or K is not that of JJᵀ"


def _measures(
    spec: Spec, ntk: NTK, twin: NTK, first: Dense, second: Dense
) -> Iterator[tuple[str, Callable[[], Estimate], float]]:
    """(name, measurement, right number) of exact ways and of every random one."""
    for name, right in first.metrics():
        yield f"exact {name}", lambda name=name: getattr(ntk, name)(method="exact"), right
    together = alignment(first, second)
    yield "exact alignment", lambda: ntk.alignment(twin, method="exact"), together
    yield "trained trace", lambda: twin.trace(method="exact"), second.trace
    yield "default norm", ntk.frobenius_norm, first.frobenius_norm
    yield "default trace", ntk.trace, first.trace
    for method in TRACES:
        yield f"{method} trace", lambda m=method: ntk.trace(m, products=20, seed=spec.seed), first.trace
    # Another one for every seed: some lie under the rank, some above it.
    budget = {"products": 12 + spec.seed % 20, "seed": spec.seed}
    for method in OF_PRODUCTS:
        for name, right in list(first.metrics())[1:]:
            yield f"{method} {name}", lambda m=method, name=name: getattr(ntk, name)(m, **budget), right
        yield f"{method} alignment", lambda m=method: ntk.alignment(twin, m, products=36), together


def _kernel_products(spec: Spec, ntk: NTK, right: Dense, rtol: float, refusals: list[str]) -> bool:
    z = torch.randn(ntk.n, 2, generator=torch.Generator().manual_seed(spec.seed)).to(ntk.dtype)
    found = _unless_refused(lambda: ntk @ z, refusals)
    if found is None:
        return True
    expected = right.kernel @ z.double()
    return _close(found, expected, rtol) and _close(ntk.to_dense(), right.kernel, rtol)


def _close(found: Tensor, expected: Tensor, rtol: float) -> bool:
    return float((found.double() - expected).norm()) <= 10 * rtol * float(expected.norm()) + 1e-300


def _unless_refused(work: Callable[[], Result], refusals: list[str]) -> Result | None:
    try:
        return work()
    except Exception as error:
        if not is_refusal(error):
            raise
        refusals.append(_line(error))
        return None


def _agrees(estimate: Estimate, right: float, rtol: float) -> bool:
    if math.isnan(right):
        return math.isnan(estimate.value)
    if not math.isfinite(estimate.value):
        return False
    if estimate.stderr is None:
        return True
    # Alignments and small differences of large numbers: an absolute part of one rounding of the scale.
    slack = rtol * max(abs(right), 1e-12)
    low, high = estimate.interval(_SIX) if estimate.stderr else (estimate.value, estimate.value)
    return low - slack <= right <= high + slack


def _outline(subject: Subject) -> list[object]:
    """What must not change by being measured."""
    model = subject.model
    parameters = [
        (name, p.detach().sum().item(), p.requires_grad, p.grad is None)
        for name, p in model.named_parameters()
    ]
    buffers = [(name, b.to_dense().sum().item()) for name, b in model.named_buffers()]
    return [*parameters, *buffers, *(module.training for module in model.modules())]


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]


def shrink(spec: Spec, verdict: Verdict) -> tuple[Spec, Verdict]:
    """The same kind of failure in its simplest form: plain inputs and outputs, few blocks."""
    for plain in ({"sink": "mean"}, {"source": "values"}, {"batch": 3}, {"budget": None}, {"mode": ""}):
        spec, verdict = _if_alike(replace(spec, **plain), spec, verdict)
    for number in reversed(range(len(spec.blocks))):
        spec, verdict = _if_alike(spec.without(number), spec, verdict)
    return spec, verdict


def _if_alike(smaller: Spec, spec: Spec, verdict: Verdict) -> tuple[Spec, Verdict]:
    if smaller == spec:
        return spec, verdict
    found = judge(smaller)
    return (smaller, found) if found.kind == verdict.kind else (spec, verdict)
