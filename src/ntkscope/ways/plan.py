"""Which way is taken: every way with its predicted seconds, and the cheapest that can be taken.

Nothing here runs a model. ``NTK.explain()`` prints a :class:`Plan`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ntkscope.engines.base import Machine, Sizes
from ntkscope.settings import Options
from ntkscope.ways.base import Problem, Way
from ntkscope.ways.table import WAYS

__all__ = [
    "USUAL",
    "Exact",
    "Plan",
    "Prediction",
    "choose",
    "exact_instead",
    "make_plan",
    "predict",
    "ways_of",
]

#: An ordinary processor: for prices that must not depend on the clock.
USUAL = Machine(flops=5e10, elements=1e9, call=5e-6)


@dataclass(frozen=True)
class Prediction:
    """What a way would cost.

    Attributes:
        way: The way.
        name: Its name, as in an Estimate's ``method``.
        words: What it does.
        seconds: Predicted time.
        why_not: Why it cannot be taken; empty if it can.
    """

    way: Way = field(repr=False)
    name: str
    words: str
    seconds: float
    why_not: str = ""

    @property
    def exact(self) -> bool:
        """Whether its result is exact."""
        return self.way.is_exact


@dataclass(frozen=True)
class Plan:
    """All the ways to a number, and the one that is taken."""

    quantity: str
    ways: tuple[Prediction, ...]
    choice: Prediction
    reason: str

    def __str__(self) -> str:
        lines = [f"{self.quantity}: {self.choice.name}, because {self.reason}.", ""]
        for way in self.ranked():
            mark = "→" if way is self.choice else " "
            cost = f"about {_duration(way.seconds)}" if not way.why_not else f"not here: {way.why_not}"
            lines.append(f" {mark} {way.name:<22} {way.words}; {cost}")
        return "\n".join(lines)

    def ranked(self) -> list[Prediction]:
        """The ways, fastest first, and those that cannot be taken after them."""
        return sorted(self.ways, key=lambda way: (bool(way.why_not), way.seconds))

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = []
        for way in self.ranked():
            cost = f"not here: {way.why_not}" if way.why_not else f"about {_duration(way.seconds)}"
            cells = [html.escape(text) for text in (way.name, way.words, cost)]
            if way is self.choice:
                cells = [f"<b>{text}</b>" for text in cells]
            rows.append("".join(f"<td style='text-align:left'>{text}</td>" for text in cells))
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("way", "what it does", "time"))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        headline = html.escape(f"{self.quantity}: {self.choice.name}, because {self.reason}.")
        return f"<p>{headline}</p><table><tr>{head}</tr>{body}</table>"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values for JSON, fastest way first; seconds are ``None`` if not finite."""
        return {
            "quantity": self.quantity,
            "choice": self.choice.name,
            "reason": self.reason,
            "ways": [
                {
                    "name": way.name,
                    "words": way.words,
                    "exact": way.exact,
                    "seconds": way.seconds if math.isfinite(way.seconds) else None,
                    "why_not": way.why_not,
                }
                for way in self.ranked()
            ],
        }


def predict(
    of_products: bool, sizes: Sizes, machine: Machine, rtol: float, why_not: dict[str, str] | None = None
) -> list[Prediction]:
    """Every way that ``"auto"`` knows, with its predicted time.

    Args:
        of_products: Whether inner products of kernels are needed, or traces alone.
        sizes: The counts of the problem.
        machine: What the device does in a second.
        rtol: The tolerance.
        why_not: Reasons against ways, by name.
    """
    reasons = why_not or {}
    return [
        Prediction(
            way,
            way.name,
            way.words(sizes, rtol),
            way.seconds(sizes, machine, rtol),
            reasons.get(way.name, ""),
        )
        for way in WAYS
        if way.serves(of_products) and way.is_automatic(of_products)
    ]


def choose(quantity: str, ways: list[Prediction], *, exact_only: bool = False) -> Plan:
    """Chooses the cheapest way that can be taken.

    Args:
        quantity: What is measured.
        ways: The ways to it.
        exact_only: Leave out estimates.
    """
    possible = [way for way in ways if not way.why_not and (way.exact or not exact_only)]
    choice = min(possible, key=lambda way: way.seconds)
    others = [way for way in possible if way is not choice]
    if not others:
        return Plan(quantity, tuple(ways), choice, "it is the only way here")
    runner_up = min(others, key=lambda way: way.seconds)
    ratio = runner_up.seconds / max(choice.seconds, 1e-12)
    reason = f"it is predicted {ratio:.2g} times faster than {runner_up.name}"
    return Plan(quantity, tuple(ways), choice, reason)


def make_plan(quantity: str, problem: Problem, *, exact_only: bool = False) -> Plan:
    """The ways to a problem of models' kernels, and the one that is taken."""
    assert problem.sizes is not None
    assert problem.machine is not None
    automatic = [way for way in WAYS if way.serves(problem.of_products)]
    reasons = {way.name: way.why_not(problem) for way in automatic}
    ways = predict(problem.of_products, problem.sizes, problem.machine, problem.rtol, reasons)
    return choose(quantity, ways, exact_only=exact_only)


def ways_of(quantity: str, problem: Problem, method: str, options: Options) -> Iterator[Way]:
    """The ways that a method's name stands for, best first: the next is for when one fails to start.

    Args:
        quantity: What is measured.
        problem: The problem.
        method: ``"auto"``, ``"exact"``, or the name of a way.
        options: A budget of products asks for an estimate.
    """
    own = [way for way in WAYS if way.serves(problem.of_products)]
    if method not in ("auto", "exact"):
        yield from (way for way in own if way.method == method)
        return
    if problem.engines is None:
        exact = method == "exact"
        yield from (
            way
            for way in own
            if not way.needs_model and (way.is_exact if exact else way.is_automatic(problem.of_products))
        )
        return
    plan = make_plan(quantity, problem, exact_only=method == "exact")
    if method == "auto" and not _pays_for_exact(problem, options):
        plan = choose(quantity, [way for way in plan.ways if not way.exact])
    rest = sorted((w for w in plan.ways if not w.why_not and w is not plan.choice), key=lambda w: w.seconds)
    yield plan.choice.way
    yield from (w.way for w in rest if method == "auto" or w.exact)


@dataclass(frozen=True)
class Exact:
    """An exact way, and the products of another way that it is worth."""

    way: Way
    products: int


def exact_instead(problem: Problem, way: Way) -> Exact:
    """The cheapest exact way of models' kernels, and the products of another way that it is worth.

    Prices come from counts at fixed speeds: where a run ends must not depend on the clock.
    """
    sizes = problem.sizes
    assert sizes is not None
    ways = [w for w in WAYS if w.is_exact and w.needs_model and w.serves(problem.of_products)]
    possible = [w for w in ways if not w.why_not(problem)]
    own = way.start_seconds(sizes, USUAL)

    def worth(exact: Way) -> float:
        # What both do before their first product, neither saves.
        return exact.seconds(sizes, USUAL, problem.rtol) - min(own, exact.start_seconds(sizes, USUAL))

    best = min(possible, key=worth)
    return Exact(best, math.ceil(worth(best) / way.product_seconds(sizes, USUAL)))


def _pays_for_exact(problem: Problem, options: Options) -> bool:
    """Whether a budget of random probes would buy every one-hot probe too; a tolerance always may."""
    if options.products is None:
        return True
    if problem.of_products:
        return False
    sizes = problem.sizes
    assert sizes is not None
    return options.products >= sizes.outputs


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
