"""The trace of a product of several kernels: exactly from dense ones, else by Hutch++ on the product."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkscope.operators.composed import ProductMap
from ntkscope.operators.ledger import Meter
from ntkscope.operators.space import Map
from ntkscope.progress import ProgressListener, progress_bar
from ntkscope.results import Estimate
from ntkscope.runs.drive import drive
from ntkscope.runs.group import MappedRun, Once, Priced
from ntkscope.runs.hutchpp import HutchPlusPlusRun
from ntkscope.settings import DEFAULT_RTOL, Options
from ntkscope.ways.base import Problem
from ntkscope.ways.dense import dense_matrix

__all__ = ["CHAIN_METHODS", "Chain", "trace_product"]

#: How the trace of a product is found.
CHAIN_METHODS = ("auto", "exact", "hutch++")

#: Of the probes; estimates of the same seed use low streams.
_STREAM = 60


def trace_product(operators: Sequence[Any], method: str, options: Options) -> Estimate:
    """Tr(K₁K₂…K_j) of symmetric operators of one size; see :func:`ntkscope.trace_product`."""
    if not operators:
        raise ValueError("trace_product needs at least one kernel, found none; pass NTKs or matrices")
    problem = Problem(tuple(operators), (), options.rtol or DEFAULT_RTOL)
    maps = problem.maps
    meter = Meter(ledger for operator in maps for ledger in operator.ledgers)
    epsilon = max(operator.epsilon for operator in maps)
    with contextlib.ExitStack() as stack:
        for engine in (getattr(operator, "engine", None) for operator in operators):
            if engine is not None:
                stack.enter_context(engine.session())
        listener = stack.enter_context(progress_bar(options.progress, "trace_product"))

        def finish(found: Estimate) -> Estimate:
            return dataclasses.replace(found, cost=meter(), epsilon=epsilon)

        def exact() -> Estimate:
            return Estimate(_dense_trace(operators), 0.0, "exact", "trace_product")

        distinct = len({id(operator) for operator in operators})
        chain = Chain(maps, exact, distinct * maps[0].shape[0], "trace_product")
        return chain.run(method, options, finish, listener)


@dataclass(frozen=True, eq=False)
class Chain:
    """The trace of a product of maps, to be found exactly or by Hutch++.

    Attributes:
        maps: In their order; the product is square.
        exact: Finds it exactly.
        price: What that is worth in products.
        quantity: What it is.
    """

    maps: Sequence[Map]
    exact: Callable[[], Estimate]
    price: int
    quantity: str

    def run(
        self,
        method: str,
        options: Options,
        form: Callable[[Estimate], Estimate],
        listener: ProgressListener,
    ) -> Estimate:
        """What follows from the trace, by a method of :data:`CHAIN_METHODS`."""
        if method not in CHAIN_METHODS:
            known = ", ".join(map(repr, CHAIN_METHODS))
            raise ValueError(f"unknown method {method!r} for {self.quantity}; choose one of {known}")
        if method == "exact":
            return form(self.exact())
        run = HutchPlusPlusRun(
            _chain(self.maps),
            seed=options.seed,
            stream=_STREAM,
            quantity=self.quantity,
            products_per_probe=len(self.maps),
        )
        instead = MappedRun(Priced(lambda: Once(self.exact), self.price), form) if method == "auto" else None
        return drive(MappedRun(run, form), options, exact=instead, progress=listener.listener)


def _chain(maps: Sequence[Map]) -> Map:
    """K₁K₂…K_j as one map."""
    first, *rest = maps
    return ProductMap(first, _chain(rest)) if rest else first


def _dense_trace(operators: Sequence[Any]) -> float:
    """The exact trace: ⟨(K₁…K_i)ᵀ, K_(i+1)…K_j⟩, so that the last product is none of matrices."""
    distinct = {id(operator): operator for operator in operators}
    dense = {key: dense_matrix(operator) for key, operator in distinct.items()}
    matrices = [dense[id(operator)] for operator in operators]
    if len(matrices) == 1:
        return float(np.trace(matrices[0]))
    *rest, last = matrices
    return float(np.sum(functools.reduce(np.matmul, rest).T * last))
