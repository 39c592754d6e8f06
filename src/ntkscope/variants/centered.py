"""The alignment of kernels that are centred over the samples (CKA)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkscope import measure
from ntkscope.engines.base import Engine, Samples
from ntkscope.engines.centered import CenteredEngine
from ntkscope.metrics import evaluate
from ntkscope.operators.centered import CenteredMap
from ntkscope.operators.composed import as_map
from ntkscope.operators.ledger import Meter
from ntkscope.progress import progress_bar
from ntkscope.results import Cost, Estimate
from ntkscope.runs.centered import CenteredGramRun
from ntkscope.runs.drive import drive
from ntkscope.runs.group import MappedRun
from ntkscope.runs.moments import Moments, MomentSource
from ntkscope.settings import Options
from ntkscope.ways.base import own_samples

__all__ = ["centered_alignment"]

#: Dense kernels, and what is made of them on the way, at once.
_COPIES = 4


@dataclass(frozen=True)
class _Kernel:
    """A kernel as :class:`ntkscope.ways.base.Problem` takes it."""

    engine: CenteredEngine


def centered_alignment(engine: Engine, other: Any, method: str, options: Options) -> Estimate:
    """cos(HKH, HK'H), as :meth:`ntkscope.NTK.alignment` with ``centered=True``.

    Args:
        engine: Of the kernel.
        other: An NTK, or a matrix of the framework.
        method: Exact from dense kernels, the per-sample Gram, or by products with H K H.
        options: How far.
    """
    second: Engine | None = getattr(other, "engine", None)
    with engine.session():
        samples = own_samples(engine, "a centred alignment")
        first = CenteredEngine(engine, samples)
        if method == "per-sample":
            return _by_gram(engine, second, samples, options)
        fits = _COPIES * engine.shape[0] ** 2 * engine.sizes().itemsize <= engine.budget
        if method in ("auto", "exact") and options.to_tolerance and fits:
            return _dense(first, second, other)
        kernel = (
            _Kernel(CenteredEngine(second, samples))
            if second is not None
            else CenteredMap(as_map(other), first.centre, first.centre)
        )
        return measure.single("alignment", [_Kernel(first), kernel], method, options)


def _dense(first: CenteredEngine, second: Engine | None, other: Any) -> Estimate:
    """From both kernels themselves."""
    meter = Meter([one.ledger for one in (first, second) if one is not None])
    theirs = other if second is None else second.dense()
    kernels = [first.dense(), first.centre(first.centre(theirs).T)]
    space = first.kernel_map()
    inner = [[float(space.inner(a, b).sum()) for b in kernels] for a in kernels]
    moments = Moments(np.full(2, np.nan), np.array(inner))
    return _evaluate(moments, "exact", meter(), None, space.epsilon)


def _by_gram(engine: Engine, second: Engine | None, samples: Samples, options: Options) -> Estimate:
    """From probes that all samples share."""
    if second is None:
        raise ValueError(
            "method 'per-sample' needs two models, found a matrix; use method='auto' or 'sketch'"
        )
    theirs = own_samples(second, "a centred alignment")
    meter = Meter([engine.ledger, second.ledger])
    epsilon = engine.kernel_map().epsilon
    run = CenteredGramRun([samples.probed(), theirs.probed()], samples.state_index(), seed=options.seed)
    mapped = MappedRun(run, lambda source: _evaluate(source, "per-sample", meter(), options.seed, epsilon))
    with ExitStack() as stack:
        listener = stack.enter_context(progress_bar(options.progress, "alignment"))
        return drive(mapped, options, progress=listener.listener)


def _evaluate(source: MomentSource, method: str, cost: Cost, seed: int | None, epsilon: float) -> Estimate:
    return evaluate(source, "alignment", method=method, cost=cost, seed=seed, epsilon=epsilon)
