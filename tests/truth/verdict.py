"""What a measurement may answer: the right number, an error bar that holds it, or a clear refusal."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

import ntkscope
from ntkscope import NTK, Estimate
from truth.reference import dense

__all__ = ["assert_right", "assert_right_or_refused", "check_model", "is_refusal", "unless_refused"]

Result = TypeVar("Result")

_PACKAGE = Path(ntkscope.__file__).parent


def is_refusal(error: BaseException) -> bool:
    """Whether an error is one of ours, and says what to do: torch's own words are none."""
    if not isinstance(error, (ValueError, TypeError, NotImplementedError)):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(_PACKAGE) and ";" in str(error)


def assert_right(estimate: Estimate, right: float, rtol: float = 1e-8) -> None:
    """An exact number is right to ``rtol``; another lies within six standard errors."""
    if math.isnan(right):
        assert math.isnan(estimate.value), estimate
        return
    assert math.isfinite(estimate.value), estimate
    if estimate.stderr is None:
        return
    error = abs(estimate.value - right)
    assert error <= 6 * estimate.stderr + rtol * abs(right), f"{estimate!r}, by autograd {right:.12g}"


def unless_refused(work: Callable[[], Result]) -> Result | None:
    """What the work gives, or ``None`` if it is refused by an error that names the remedy."""
    try:
        return work()
    except Exception as error:
        if not is_refusal(error):
            raise
        return None


def assert_right_or_refused(measure: Callable[[], Estimate], right: float, rtol: float = 1e-8) -> None:
    """As :func:`assert_right`, or an error that names the remedy."""
    estimate = unless_refused(measure)
    if estimate is not None:
        assert_right(estimate, right, rtol)


def _by_products(ntk: NTK) -> Iterator[Estimate]:
    """What takes products Ju, where these are not refused."""
    for measure in (
        lambda: ntk.trace(method="hutch++", products=12),
        lambda: ntk.frobenius_norm(method="sketch", products=12),
    ):
        estimate = unless_refused(measure)
        if estimate is not None:
            yield estimate


def check_model(
    model: nn.Module,
    inputs: object,
    call: Callable[[], Tensor],
    *,
    refusable: bool = False,
    rtol: float = 1e-8,
    trained_as: nn.Module | None = None,
    **options: object,
) -> None:
    """Every metric of a model, exactly and by products, against its own module.

    Args:
        model: The user's module.
        inputs: As NTK takes them.
        call: Runs the user's module as its user does. It is called after the measurement.
        refusable: Whether a clear refusal is as good as the right number.
        rtol: Of exact numbers.
        trained_as: The module that ``call`` runs, if it is another one of the same numbers.
        **options: Of NTK.
    """
    estimates: list[Estimate] = []
    try:
        ntk = NTK(model, inputs, **options)  # type: ignore[arg-type]
        estimates.extend(_by_products(ntk))
        estimates.append(ntk.trace(method="exact"))
        estimates.append(ntk.frobenius_norm(method="exact"))
        estimates.append(ntk.effective_rank(method="exact"))
        estimates.append(ntk.trace(method="rhutch", products=12))
        estimates.append(ntk.frobenius_norm())
    except Exception as error:
        if not (refusable and is_refusal(error)):
            raise
    right = dict(dense(trained_as or model, call).metrics())
    for estimate in estimates:
        assert_right(estimate, right[estimate.quantity], rtol)
