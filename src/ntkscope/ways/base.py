"""What a way to a number is, and the problem that it is asked to solve."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ntkscope.engines.base import Engine, Machine, Refusal, Samples, Sizes
from ntkscope.errors import argument
from ntkscope.journal import recorded_form
from ntkscope.operators.composed import as_factor, as_map
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Factor, Map
from ntkscope.progress import ProgressListener
from ntkscope.runs.drive import Run
from ntkscope.runs.moments import Moment, MomentSource
from ntkscope.runs.ring import check_at_once

__all__ = ["NeedsSamples", "Problem", "Start", "Way"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Which moments of which kernels are wanted, and how well.

    Attributes:
        operators: The kernels as the caller gave them: NTKs, matrices, anything with ``@``.
        moments: What is needed, in the order of need.
        rtol: The tolerance that predictions are made for.
    """

    operators: tuple[Any, ...]
    moments: tuple[Moment, ...]
    rtol: float

    @property
    def of_products(self) -> bool:
        """Whether inner products ⟨K_a, K_b⟩ are needed, not traces alone."""
        return any(len(moment) == 2 for moment in self.moments)

    def apart(self) -> list[Problem]:
        """The trace of every kernel as a problem of its own: traces share no work."""
        return [Problem((operator,), ((0,),), self.rtol) for operator in self.operators]

    @functools.cached_property
    def engines(self) -> tuple[Engine, ...] | None:
        """The engines of all kernels; ``None`` if one of them has none."""
        found = [getattr(operator, "engine", None) for operator in self.operators]
        engines = tuple(engine for engine in found if engine is not None)
        return engines if len(engines) == len(found) else None

    @functools.cached_property
    def samples(self) -> tuple[Samples, ...] | Refusal:
        """The samples of all kernels, along the same axes, or why there is no such structure."""
        if self.engines is None:
            return Refusal("a kernel is a matrix, not that of a model")
        found: list[Samples] = []
        for engine in self.engines:
            samples = engine.samples()
            if isinstance(samples, Refusal):
                return samples
            found.append(samples)
        if not all(found[0].is_comparable(other) for other in found[1:]):
            return Refusal("the kernels' samples lie along different axes")
        return tuple(found)

    @functools.cached_property
    def sizes(self) -> Sizes | None:
        """Counts to plan with; ``None`` for matrices."""
        if self.engines is None:
            return None
        engine, count = self.engines[0], len(self.operators)
        # A run that goes on takes the same way, whatever memory and time there are then.
        return Sizes(**recorded_form("sizes", lambda: dataclasses.asdict(engine.sizes(count))))

    @functools.cached_property
    def machine(self) -> Machine | None:
        """What the device does in a second; ``None`` for matrices."""
        if self.engines is None:
            return None
        engine = self.engines[0]
        return Machine(**recorded_form("machine", lambda: dataclasses.asdict(engine.machine())))

    @functools.cached_property
    def maps(self) -> tuple[Map, ...]:
        """The kernels as maps of one size; the same object gives the same map.

        Raises:
            TypeError: If an operator is none.
            ValueError: If an operator is not square, or sizes differ.
        """
        made: dict[int, Map] = {}
        maps = tuple(made.setdefault(id(operator), as_map(operator)) for operator in self.operators)
        for operator in maps:
            if operator.shape[0] != operator.shape[1]:
                raise ValueError(
                    f"a kernel is square, found shape {operator.shape}; "
                    "pass K = J Jᵀ (an NTK), not the Jacobian"
                )
            if operator.shape != maps[0].shape:
                raise ValueError(
                    f"kernels must act on the same state, found shapes {maps[0].shape} and "
                    f"{operator.shape}; use the same inputs and outputs for both"
                )
        return maps

    @functools.cached_property
    def _factors(self) -> tuple[Factor | None, ...]:
        """J of every kernel, where it offers one; the same object gives the same map."""
        made: dict[int, Factor | None] = {}
        return tuple(made.setdefault(id(operator), as_factor(operator)) for operator in self.operators)

    def factors(self, method: str, words: str) -> tuple[Factor, ...]:
        """J of every kernel, for methods that use one mode alone.

        Args:
            method: Its name, for the error.
            words: What it needs.

        Raises:
            TypeError: If an operator does not offer it.
            ValueError: If the sizes of the states differ.
        """
        found: list[Factor] = []
        for operator, factor in zip(self.operators, self._factors, strict=True):
            if factor is None:
                raise TypeError(
                    f"method {method!r} needs {words}, which {type(operator).__name__} does not offer; "
                    "pass an NTK, or use method='hutch++'"
                )
            found.append(factor)
        sizes = [factor.shape[0] for factor in found]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"kernels must act on the same state, found sizes {sizes}; use the same inputs and outputs"
            )
        return tuple(found)

    def ledgers(self) -> list[Ledger]:
        """Where the products of all kernels are entered."""
        if self.engines is not None:
            return [engine.ledger for engine in self.engines]
        maps = [*self.maps, *(factor for factor in self._factors if factor is not None)]
        return [ledger for operator in maps for ledger in operator.ledgers]


@dataclass(frozen=True, eq=False)
class Start:
    """A run that is ready to grow.

    Attributes:
        run: Gives the moments.
        exact: Taken instead when it costs no more; ``None`` if there is none.
    """

    run: Run[MomentSource]
    exact: Run[MomentSource] | None = field(default=None)


class Way(Protocol):
    """One way to moments of kernels.

    Attributes:
        name: As it appears in an estimate's ``method`` and in plans.
        method: What a caller asks for to get it.
        is_exact: Whether its result is exact.
        needs_model: Whether it is for models' kernels alone, not for matrices.
    """

    @property
    def name(self) -> str:
        """As it appears in an estimate's ``method`` and in plans."""
        ...

    @property
    def method(self) -> str:
        """What a caller asks for to get it."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether its result is exact."""
        ...

    @property
    def needs_model(self) -> bool:
        """Whether it is for models' kernels alone, not for matrices."""
        ...

    def is_automatic(self, of_products: bool) -> bool:
        """Whether ``method="auto"`` may take it for what is needed."""
        ...

    def serves(self, of_products: bool) -> bool:
        """Whether it gives what is needed: traces alone, or inner products as well."""
        ...

    def words(self, sizes: Sizes, rtol: float) -> str:
        """What it does, for plans."""
        ...

    def why_not(self, problem: Problem) -> str:
        """Why it cannot be taken; empty if it can."""
        ...

    def seconds(self, sizes: Sizes, machine: Machine, rtol: float) -> float:
        """Predicted time to a relative tolerance."""
        ...

    def product_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """Predicted time of one more product of a run that grows."""
        ...

    def start_seconds(self, sizes: Sizes, machine: Machine) -> float:
        """Predicted time of what it does before its first product."""
        ...

    def start(self, problem: Problem, seed: int, listener: ProgressListener) -> Start:
        """The run.

        Raises:
            NotImplementedError: If the model lacks a mode that it needs, which only trying can tell.
            TypeError: If an operator lacks it.
        """
        ...


class NeedsSamples:
    """Applicability of the ways that treat every sample on its own."""

    needs_model = True

    def why_not(self, problem: Problem) -> str:
        """The reason why there is no per-sample structure, if there is none."""
        samples = problem.samples
        return samples.reason if isinstance(samples, Refusal) else ""


def own_samples(engine: Engine, what: str, instead: str = "") -> Samples:
    """The samples of a model, for what cannot do without.

    Args:
        engine: Of the model.
        what: What needs them, for the error.
        instead: Another remedy than naming their axis.

    Raises:
        ValueError: If they are not known one by one, or come in batches.
    """
    samples = engine.samples()
    if isinstance(samples, Refusal):
        raise ValueError(
            f"{what} needs samples that are treated on their own: {samples.reason}; name the samples' axis "
            f"by batch_dim={instead}"
        )
    check_at_once(samples.probed(), what)
    return samples


def per_sample_of(problem: Problem, method: str) -> Sequence[Samples]:
    """The samples of every kernel.

    Raises:
        ValueError: If there is no per-sample structure.
    """
    samples = problem.samples
    if isinstance(samples, Refusal):
        raise ValueError(
            f"per-sample methods do not apply: {samples.reason}; use "
            f"{argument('method', 'auto', 'hutch++')}, or name the samples' axis by {argument('batch_dim')}"
        )
    return samples
