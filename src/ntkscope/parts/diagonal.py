"""Squared gradients: of every output (the diagonal of K), and of every sample."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ntkscope.engines.base import Engine, Refusal, Samples
from ntkscope.operators.ledger import Meter
from ntkscope.operators.probes import normal_probes, sphere_probes
from ntkscope.operators.space import Small
from ntkscope.progress import ProgressListener, progress_bar
from ntkscope.results import ArrayEstimate, Estimate
from ntkscope.runs.arrays import ArrayMeans, ArrayRun, ArraySamples
from ntkscope.runs.drive import drive
from ntkscope.settings import DEFAULT_RTOL, Options
from ntkscope.ways.costs import jvp_seconds, per_sample_seconds, vjp_seconds

__all__ = ["diagonal", "squared_gradients"]

_STREAM = 28
_SAMPLE_STREAM = 29


def diagonal(engine: Engine, method: str, options: Options) -> ArrayEstimate:
    """As :meth:`ntkscope.NTK.diagonal`."""
    _check(method, ("auto", "exact", "forward"))
    shape = engine.output_shape
    meter = Meter([engine.ledger])
    with engine.session(), progress_bar(options.progress, "diagonal") as listener:
        if method == "auto":
            method = _cheapest_diagonal(engine, options)
        if method == "exact":
            values = _rows(engine, listener).reshape(shape)
            return _exact(engine, values, "diagonal", meter)
        engine.check_forward()

        def draw(start: int, stop: int) -> Small:
            u = sphere_probes(engine.shape[1], start, stop, seed=options.seed, stream=_STREAM)
            squares: Small = np.asarray(engine.map() @ u, dtype=np.float64).T ** 2
            return squares

        return _estimated(engine, draw, shape, "forward", "diagonal", options, meter, listener)


def squared_gradients(engine: Engine, method: str, options: Options) -> ArrayEstimate:
    """As :meth:`ntkscope.NTK.squared_gradients`."""
    _check(method, ("auto", "exact", "per-sample"))
    meter = Meter([engine.ledger])
    with engine.session(), progress_bar(options.progress, "squared gradients") as listener:
        found = engine.samples()
        if isinstance(found, Refusal):
            raise ValueError(
                f"a sample has no gradient of its own here: {found.reason}; name the samples' axis by "
                "batch_dim=, or use diagonal(), which needs no samples"
            )
        samples: Samples = found
        if method == "auto":
            sizes, machine = engine.sizes(), engine.machine()
            drawn = math.ceil(0.5 / (options.tolerance or DEFAULT_RTOL) ** 2)
            exact = per_sample_seconds(sizes, machine, sizes.outputs, sizes.pieces)
            if options.products is not None:
                method = "exact" if options.products >= sizes.outputs else "per-sample"
            else:
                cheaper = exact <= per_sample_seconds(sizes, machine, drawn, 1)
                method = "exact" if cheaper else "per-sample"
        if method == "exact":
            return _exact(engine, samples.exact_squares(listener.fraction), "squared_gradients", meter)

        def draw(start: int, stop: int) -> Small:
            n = engine.shape[0]
            return samples.squares(normal_probes(n, start, stop, seed=options.seed, stream=_SAMPLE_STREAM))

        return _estimated(
            engine, draw, (samples.batch,), "per-sample", "squared_gradients", options, meter, listener
        )


def _check(method: str, known: tuple[str, ...]) -> None:
    if method not in known:
        raise ValueError(f"unknown method {method!r}; choose one of " + ", ".join(map(repr, known)))


def _cheapest_diagonal(engine: Engine, options: Options) -> str:
    """An entry by k directions is off by √(2/k), whatever the kernel."""
    if options.products is not None:
        return "forward"
    sizes, machine = engine.sizes(), engine.machine()
    drawn = jvp_seconds(sizes, machine, math.ceil(2 / (options.tolerance or DEFAULT_RTOL) ** 2))
    if isinstance(engine.samples(), Refusal):
        exact = vjp_seconds(sizes, machine, sizes.n)
    else:
        exact = per_sample_seconds(sizes, machine, sizes.outputs, sizes.pieces)
    if exact <= drawn:
        return "exact"
    try:
        engine.check_forward()
    except NotImplementedError:
        return "exact"
    return "forward"


def _rows(engine: Engine, listener: ProgressListener) -> Small:
    """‖J_i‖² of every row, flat."""
    samples, n = engine.samples(), engine.shape[0]
    found = np.zeros(n)
    if not isinstance(samples, Refusal):
        found[samples.state_index()] = samples.output_squares(listener.fraction)
        return found
    reverse = engine.map().T
    for start in range(0, n, 64):
        stop = min(start + 64, n)
        found[start:stop] = reverse.squares(reverse.identity(start, stop))
        listener.fraction(stop, n)
    return found


def _exact(engine: Engine, values: Small, quantity: str, meter: Meter) -> ArrayEstimate:
    epsilon = engine.map().epsilon
    return ArrayEstimate(values, np.zeros_like(values), quantity, cost=meter(), epsilon=epsilon)


def _estimated(
    engine: Engine,
    draw: ArraySamples,
    shape: tuple[int, ...],
    method: str,
    quantity: str,
    options: Options,
    meter: Meter,
    listener: ProgressListener,
) -> ArrayEstimate:
    def whole(means: ArrayMeans) -> list[Estimate]:
        error = None if means.stderr is None else float(np.linalg.norm(means.stderr))
        freedom = len(means.groups.counts) - 1.0
        return [Estimate(float(np.linalg.norm(means.values)), error, degrees_of_freedom=freedom)]

    epsilon = engine.map().epsilon
    run = ArrayRun(draw, shape, cost=1, epsilon=epsilon, form=whole, is_kernel=False)
    (stamp,) = drive(run, options, progress=listener.listener)
    means = run.means()
    found = ArrayEstimate(
        means.values, means.stderr, quantity, method, means.degrees_of_freedom, seed=options.seed,
        epsilon=epsilon, note=stamp.note, converged=stamp.converged,
    )  # fmt: skip
    return dataclasses.replace(found, cost=meter())
