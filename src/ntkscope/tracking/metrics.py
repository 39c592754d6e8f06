"""What is watched during training: each number's name, how it is made, and how a reader should read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ntkscope.fingerprints import Fingerprint
from ntkscope.results import Cost, Estimate

__all__ = ["DEFAULT", "WATCHED", "Moment", "Watched", "check_watched", "numbers", "target_alignment"]


@dataclass(frozen=True, eq=False)
class Moment:
    """What the numbers of one moment are made of.

    Attributes:
        now: The kernel's fingerprint.
        first: That of the kernel at the start, ``None`` at the start itself.
        last: That of the look before, if there was one.
        pull: ‖Jᵀy‖² / ‖y‖² of the targets y, if there are any.
        pull_cost: Of that.
    """

    now: Fingerprint
    first: Fingerprint | None = None
    last: Fingerprint | None = None
    pull: float | None = None
    pull_cost: Cost = field(default_factory=Cost)

    @cached_property
    def norm(self) -> Estimate:
        """‖K‖, which several numbers are made of."""
        return self.now.frobenius_norm()

    @cached_property
    def velocity(self) -> Estimate | None:
        """1 - cos(K, K') with the look before."""
        return None if self.last is None else self.now.distance(self.last)


@dataclass(frozen=True)
class Watched:
    """A number that is watched.

    Attributes:
        title: What people call it.
        symbol: What it is.
        reading: How to read its curve, in one sentence.
        measure: Makes it; ``None`` where it is not defined, as at the first look.
        bounded: Whether it lies between 0 and 1.
    """

    title: str
    symbol: str
    reading: str
    measure: Callable[[Moment], Estimate | None]
    bounded: bool = False


def _with_start(moment: Moment) -> Estimate | None:
    if moment.first is None:
        return Estimate(1.0, 0.0, "by definition", "alignment")
    return moment.now.alignment(moment.first)


def _with_last(moment: Moment) -> Estimate | None:
    # From the velocity, whose error bar is the better one.
    return None if moment.velocity is None else moment.velocity.affine(-1.0, 1.0, "1 - {}")


def _with_targets(moment: Moment) -> Estimate | None:
    if moment.pull is None:
        return None
    return target_alignment(moment.pull, moment.norm, moment.pull_cost)


def target_alignment(pull: float, norm: Estimate, cost: Cost) -> Estimate:
    """yᵀKy / (‖K‖‖y‖²), with the error that the norm's makes.

    Args:
        pull: ‖Jᵀy‖² / ‖y‖², exact.
        norm: ‖K‖.
        cost: Of the pull.
    """
    value = pull / norm.value if norm.value else math.nan
    relative = norm.relative_stderr
    return Estimate(
        value,
        None if relative is None or math.isnan(value) else value * relative,
        f"vjp and {norm.method}",
        "target_alignment",
        None,
        norm.degrees_of_freedom,
        norm.cost + cost,
        norm.seed,
        epsilon=norm.epsilon,
    )


#: Every number that can be watched, in the order of pages.
WATCHED: dict[str, Watched] = {
    "alignment_start": Watched(
        "alignment with the start",
        "cos(K₀, Kₜ)",
        "Near 1 the network trains lazily, as its linearisation would; a fall says that it learns features.",
        _with_start,
        bounded=True,
    ),
    "effective_rank": Watched(
        "effective rank",
        "(tr K)² / ‖K‖²",
        "How many directions of the outputs move together; a fall says that few directions take over.",
        lambda moment: moment.now.effective_rank(),
    ),
    "target_alignment": Watched(
        "alignment with the targets",
        "yᵀKy / (‖K‖ ‖y‖²)",
        "How much of the kernel points along the targets; a rise says that it turns towards the task.",
        _with_targets,
        bounded=True,
    ),
    "velocity": Watched(
        "velocity",
        "1 − cos(Kₜ₋₁, Kₜ)",
        "How far the kernel turned since the look before; high early and low later is the usual picture.",
        lambda moment: moment.velocity,
    ),
    "alignment_last": Watched(
        "alignment with the look before",
        "cos(Kₜ₋₁, Kₜ)",
        "Near 1 the kernel stands still between looks; it is 1 minus the velocity.",
        _with_last,
        bounded=True,
    ),
    "trace": Watched(
        "trace",
        "tr K",
        "The size of all gradients together: how far one small step moves the outputs.",
        lambda moment: moment.now.trace(),
    ),
    "frobenius_norm": Watched(
        "Frobenius norm",
        "‖K‖",
        "The size of the kernel with its largest directions counted most; it grows as the gradients align.",
        lambda moment: moment.norm,
    ),
}

#: All of them; what is not defined, as the targets' alignment without targets, is left out.
DEFAULT = tuple(WATCHED)


def check_watched(names: Sequence[str]) -> tuple[str, ...]:
    """The names, in the order of pages.

    Raises:
        ValueError: If one of them is unknown, or there is none.
    """
    if isinstance(names, str):
        names = (names,)
    unknown = [name for name in names if name not in WATCHED]
    if unknown or not names:
        found = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"unknown metric {found}; choose from " + ", ".join(map(repr, WATCHED)))
    return tuple(name for name in WATCHED if name in names)


def numbers(names: Sequence[str], moment: Moment) -> Mapping[str, Estimate]:
    """All of these numbers that are defined at a moment."""
    found = {name: WATCHED[name].measure(moment) for name in names}
    return {name: estimate for name, estimate in found.items() if estimate is not None}
