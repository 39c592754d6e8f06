"""Numbers of a kernel and a vector on its state: quadratic forms, of K and of its inverse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.base import Engine
from ntkscope.operators.centered import CenteredMap, centre_over
from ntkscope.operators.ledger import Meter
from ntkscope.results import Estimate
from ntkscope.runs.moments import ROUNDING
from ntkscope.runs.statistics import Summary, combine_independent
from ntkscope.ways.dense import on_host

__all__ = ["alignment", "inverse_form", "read_targets", "speed", "speeds", "vector_of"]

Vector = NDArray[np.float64]

# Up to this size a dense kernel and its Cholesky factor are cheaper than conjugate gradients.
_DENSE = 512


def vector_of(engine: Engine, y: Any, what: str = "targets") -> Vector:
    """A vector on the state as float64 numbers on the host, shape (n,); see :func:`read_targets`."""
    return read_targets(y, tuple(engine.output_shape), what)[0]


def read_targets(
    y: Any, shape: tuple[int, ...], what: str = "targets"
) -> tuple[Vector, NDArray[np.int64] | None]:
    """Targets as a vector on a state, and the classes that they were given as, if they were.

    Args:
        y: Of the state's shape, or flattened; or classes, whole numbers of the state's shape without its
            last axis, which become one-hot.
        shape: The state's.
        what: It is, for errors.

    Raises:
        TypeError: If it holds no numbers.
        ValueError: If it has another shape, holds a class that there is not, or is not finite.
    """
    try:
        numbers = on_host(y)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{what} must be a tensor or an array of numbers, found a {type(y).__name__}"
        ) from error
    n = math.prod(shape)
    if numbers.shape in ((n,), shape):
        if not np.isfinite(numbers).all():
            raise ValueError(f"the {what} have entries that are not finite; look for nan and inf in them")
        return numbers.reshape(-1), None
    if not shape or numbers.shape != shape[:-1] or not _is_whole(y):
        raise ValueError(
            f"the {what} have shape {numbers.shape}, expected the state's, {shape}, or whole numbers of "
            f"shape {shape[:-1]} for classes; pass the {what} of these inputs"
        )
    classes, count = numbers.astype(np.int64), shape[-1]
    if not 0 <= classes.min() <= classes.max() < count:
        raise ValueError(
            f"the {what} hold classes from {classes.min()} to {classes.max()}, expected 0 to {count - 1}; "
            f"the state has {count} outputs"
        )
    return np.eye(count)[classes].reshape(-1), classes


def _is_whole(y: Any) -> bool:
    """Whether numbers of any framework are of a type for whole ones."""
    floating = getattr(y, "is_floating_point", None)
    return not floating() if floating is not None else np.asarray(y).dtype.kind in "iu"


def alignment(operator: Any, y: Any, axis: int | None, norm_of: Callable[[Any], Estimate]) -> Estimate:
    """YᵀKy/(‖K‖_F ‖y‖²); of HKH and Hy where an axis is centred.

    Args:
        operator: The NTK.
        y: The targets.
        axis: To centre along, or ``None``.
        norm_of: Measures the Frobenius norm of K or HKH.
    """
    engine: Engine = operator.engine
    vector, shape = vector_of(engine, y), tuple(engine.output_shape)
    with engine.session():
        meter, kernel = Meter([engine.ledger]), operator
        if axis is not None:
            if not -len(shape) <= axis < len(shape):
                raise ValueError(f"the state {shape} has no axis {axis}; name that of the samples")
            places = np.moveaxis(np.arange(vector.size).reshape(shape), axis, 0)
            centre = centre_over(places.reshape(len(places), -1))
            vector, kernel = centre(vector), CenteredMap(engine.kernel_map(), centre, centre)
        length = float(vector @ vector)
        if not length > 0:
            raise ValueError("the targets are zero, or the same for all samples; there is nothing to align")
        form = _squared(engine.map().T @ vector)
        norm = norm_of(kernel)
        found = dataclasses.replace(norm, quantity="target_alignment", samples=None, cost=meter())
    if not norm.value > 0:
        note = "the alignment of a zero kernel is not defined"
        return dataclasses.replace(found, value=float("nan"), stderr=None, note=note)
    inverse = combine_independent([Summary(norm.value, norm.stderr, norm.degrees_of_freedom)], [-1])
    share = form / length
    stderr = None if inverse.stderr is None else inverse.stderr * share
    return dataclasses.replace(found, value=min(inverse.value * share, 1.0), stderr=stderr)


def speed(engine: Engine, loss: Any) -> Estimate:
    """‖Jᵀ∂L/∂h‖² of a loss, or of its gradient given as a vector."""
    with engine.session():
        meter = Meter([engine.ledger])
        value = _squared(engine.map().T @ _gradient(engine, loss))
        return Estimate(value, 0.0, "exact", "loss_speed", cost=meter(), epsilon=_epsilon(engine))


def speeds(engine: Engine, losses: Mapping[str, Any]) -> dict[str, Estimate]:
    """(Jᵀgᵢ)ᵀ Σⱼ Jᵀgⱼ of every term; they add up to the speed of their sum."""
    if not losses:
        raise ValueError("there is no term; pass a mapping of names to losses")
    with engine.session():
        meter = Meter([engine.ledger])
        gradients = np.stack([_gradient(engine, loss) for loss in losses.values()], axis=1)
        pulled = on_host(engine.map().T @ gradients)
        shares = pulled.T @ pulled.sum(axis=1)
        cost, epsilon = meter(), _epsilon(engine)
    return {
        name: Estimate(float(share), 0.0, "exact", f"loss_speed of {name}", cost=cost, epsilon=epsilon)
        for name, share in zip(losses, shares, strict=True)
    }


def inverse_form(
    engine: Engine, y: Any, shift: float, method: str, rtol: float, max_products: int | None
) -> Estimate:
    """Yᵀ(K + λI)⁻¹y; see :meth:`ntkscope.NTK.inverse_form`."""
    if not shift > 0:
        raise ValueError(f"the shift λ must be positive, found {shift}; K alone may have no inverse")
    if method not in ("auto", "exact", "cg"):
        raise ValueError(f"unknown method {method!r} for inverse_form; choose one of 'auto', 'exact', 'cg'")
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, found {rtol}; use a value such as 1e-4")
    vector = vector_of(engine, y)
    n = len(vector)
    with engine.session():
        meter = Meter([engine.ledger])
        blank = Estimate(0.0, 0.0, "exact", "inverse_form", epsilon=_epsilon(engine))
        if method == "exact" or (method == "auto" and n <= _DENSE):
            from scipy.linalg import cho_factor, cho_solve

            shifted = on_host(engine.dense()) + shift * np.eye(n)
            value = float(vector @ cho_solve(cho_factor(shifted), vector))
            return dataclasses.replace(blank, value=value, cost=meter())
        kernel = engine.kernel_map()

        def product(v: Vector) -> Vector:
            return on_host(kernel @ v) + shift * v

        low, width, met = _bracketed(product, vector, shift, rtol, max_products or 10 * n)
        error = max(width / 2, ROUNDING * blank.epsilon * low)
        note = "" if met else "conjugate gradients ended before the tolerance was met"
        middle = low + width / 2
        found = dataclasses.replace(blank, value=middle, stderr=error or None, method="cg", note=note)
        return dataclasses.replace(found, cost=meter(), converged=met)


def _bracketed(
    product: Callable[[Vector], Vector], y: Vector, shift: float, rtol: float, most: int
) -> tuple[float, float, bool]:
    """A lower bound of yᵀA⁻¹y, how far the truth may lie above it, and whether that is within rtol.

    With x near A⁻¹y and r = y - Ax, yᵀA⁻¹y = yᵀx + rᵀx + rᵀA⁻¹r, and 0 ≤ rᵀA⁻¹r ≤ ‖r‖²/λ.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    spent = 0

    def counted(v: Vector) -> Vector:
        nonlocal spent
        spent += 1
        return product(v.reshape(-1))

    make: Any = LinearOperator
    operator = make((len(y), len(y)), matvec=counted, dtype=np.float64)
    x, tightness, before = np.zeros(len(y)), 0.1, np.inf
    while True:
        x, _ = cg(operator, y, x0=x, rtol=tightness, atol=0.0, maxiter=max(1, most - spent))
        r = y - counted(x)
        low, width = float(y @ x + r @ x), float(r @ r) / shift
        if width <= rtol * low:
            return low, width, True
        # Restarts that gain nothing have come to the rounding of the products.
        if spent >= most or width > before / 2:
            return low, width, False
        tightness, before = tightness * 0.1, width


def _gradient(engine: Engine, loss: Any) -> Vector:
    if callable(loss):
        return on_host(engine.state_gradient(loss))
    return vector_of(engine, loss, "gradients of the loss")


def _squared(vector: Any) -> float:
    host = on_host(vector)
    return float(host @ host)


def _epsilon(engine: Engine) -> float:
    return engine.map().epsilon
