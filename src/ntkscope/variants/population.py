"""The effective rank that does not depend on the number of samples."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ntkscope.engines.base import Engine
from ntkscope.metrics import evaluate
from ntkscope.operators.ledger import Meter
from ntkscope.progress import progress_bar
from ntkscope.results import Estimate
from ntkscope.runs.drive import drive
from ntkscope.runs.group import MappedRun, Once, Priced
from ntkscope.runs.moments import Moments, MomentSource
from ntkscope.runs.population import POWERS, QUANTITY, PopulationRun, exact_population
from ntkscope.settings import DEFAULT_RTOL, Options
from ntkscope.ways.base import own_samples
from ntkscope.ways.exact import Tiles
from ntkscope.ways.per_sample import PerSampleGram, gram_bytes
from ntkscope.ways.plan import USUAL

__all__ = ["METHODS", "population_effective_rank"]

METHODS = ("auto", "exact", "per-sample")


def population_effective_rank(engine: Engine, method: str, options: Options) -> Estimate:
    """As :meth:`ntkscope.NTK.effective_rank` with ``population=True``."""
    if method not in METHODS:
        raise ValueError(
            f"unknown method {method!r} for the population's effective rank; choose one of "
            + ", ".join(map(repr, METHODS))
        )
    with engine.session(), progress_bar(options.progress, "effective rank") as listener:
        samples = own_samples(engine, "the population's effective rank")
        if samples.batch < 2:
            raise ValueError("the population's effective rank needs two samples or more, found 1")
        meter = Meter([engine.ledger])
        epsilon = engine.kernel_map().epsilon

        def finish(source: MomentSource, name: str, seed: int | None) -> Estimate:
            found = evaluate(
                source, "effective_rank", (0,), method=name, cost=meter(), seed=seed, epsilon=epsilon,
                powers=POWERS,
            )  # fmt: skip
            return dataclasses.replace(found, quantity=QUANTITY)

        def exact() -> Estimate:
            _, inner = samples.exact_moments([], listener.fraction)
            sums = exact_population(samples.probed(), samples.state_index(), float(inner[0, 0]))
            return finish(Moments(np.array([sums[0]]), np.array([[sums[1]]])), "exact", None)

        price = _price(engine, options)
        if method == "exact" or (method == "auto" and options.to_tolerance and price == 0):
            return exact()
        run = MappedRun(
            PopulationRun(samples.probed(), seed=options.seed),
            lambda source: finish(source, "per-sample", options.seed),
        )
        instead = Priced(lambda: Once(exact), price) if options.to_tolerance and price else None
        return drive(run, options, exact=instead, progress=listener.listener)


def _price(engine: Engine, options: Options) -> int | None:
    """As many probes cost as much as the exact number.

    Returns:
        0 if it is cheaper in any case, ``None`` if it does not fit the memory.
    """
    sizes, machine, gram = engine.sizes(), engine.machine(), PerSampleGram()
    if gram_bytes(sizes, sizes.outputs) > sizes.budget:
        return None
    if Tiles().seconds(sizes, machine, 0) <= gram.seconds(sizes, machine, options.rtol or DEFAULT_RTOL):
        return 0
    # Where a run ends must not depend on the clock.
    return max(2, math.ceil(Tiles().seconds(sizes, USUAL, 0) / gram.product_seconds(sizes, USUAL)))
