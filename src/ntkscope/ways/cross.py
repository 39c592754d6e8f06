"""Kernels between two states: dense ones, norms; and solving with K + λI."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.base import Engine
from ntkscope.operators.composed import CrossMap
from ntkscope.operators.ledger import Meter
from ntkscope.operators.space import Map
from ntkscope.progress import progress_bar
from ntkscope.results import Cost, Estimate
from ntkscope.settings import Options
from ntkscope.ways.chains import Chain
from ntkscope.ways.dense import on_host

__all__ = ["Solution", "check_pair", "cross_block", "cross_map", "cross_norm", "sessions", "solve"]

Small = NDArray[np.float64]

# Rows of J on the left at a time.
_ROWS = 64
# Up to this size a dense kernel and its Cholesky factor are cheaper than conjugate gradients.
_DENSE = 1024


def check_pair(left: Engine, right: Engine) -> None:
    """An error for two states whose parameters are not the same ones.

    Raises:
        ValueError: If they are not.
    """
    if list(left.parameters.values()) != list(right.parameters.values()):
        raise ValueError(
            f"the models' parameters have other shapes (p={left.shape[1]:,} and p={right.shape[1]:,}); a "
            "kernel between two states needs one θ: use the same model, or one of the same layers"
        )
    if left.dtype != right.dtype or left.device != right.device:
        raise ValueError(
            f"the states are {left.dtype} on {left.device} and {right.dtype} on {right.device}; "
            "bring both models to one dtype and device"
        )


@contextmanager
def sessions(left: Engine, right: Engine) -> Iterator[Meter]:
    """Both engines' sessions, and what is spent in them."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(left.session())
        stack.enter_context(right.session())
        yield Meter([left.ledger, right.ledger])


def cross_map(left: Engine, right: Engine) -> CrossMap:
    """J₁J₂ᵀ as a map of shape (n₁, n₂)."""
    return CrossMap(left.map(), right.map())


def cross_block(left: Engine, right: Engine, rows: range, columns: range) -> Small:
    """Entries of K₁₂ in float64, by reverse products alone: shape (rows, columns).

    The right side is kept in panels that fit half of the budget; the left one is pulled back again for
    each of them.
    """
    found = np.zeros((len(rows), len(columns)))
    width = max(1, left.budget // (2 * 8 * left.shape[1]))
    reverse_left, reverse_right = left.map().T, right.map().T
    for start in range(columns.start, columns.stop, width):
        panel = range(start, min(start + width, columns.stop))
        pulled = _rows_of(reverse_right, panel)
        for top in range(rows.start, rows.stop, _ROWS):
            part = range(top, min(top + _ROWS, rows.stop))
            tile = reverse_left.gram(_rows_of(reverse_left, part), pulled)
            found[
                part.start - rows.start : part.stop - rows.start,
                panel.start - columns.start : panel.stop - columns.start,
            ] = tile
    return found


def _rows_of(reverse: Map, places: range) -> Any:
    """JᵀE, the rows of J as columns."""
    return reverse.apply(reverse.identity(places.start, places.stop))


def cross_norm(left: Engine, right: Engine, method: str, options: Options) -> Estimate:
    """‖K₁₂‖_F = √tr(K₁₂K₂₁)."""
    with (
        sessions(left, right) as meter,
        progress_bar(options.progress, "cross_frobenius_norm") as listener,
    ):
        cross = cross_map(left, right)
        n, m = cross.shape

        def exact() -> Estimate:
            dense = cross_block(left, right, range(n), range(m))
            return Estimate(float(np.sum(dense**2)), 0.0, "exact")

        def form(square: Estimate) -> Estimate:
            root = math.sqrt(max(square.value, 0.0))
            known = square.stderr is not None and root > 0
            stderr = square.stderr / (2 * root) if known and square.stderr is not None else square.stderr
            note = "" if square.value >= 0 else "the squared norm came out negative; spend more products"
            return dataclasses.replace(
                square,
                value=root,
                stderr=stderr,
                quantity="frobenius_norm",
                samples=None,
                note=note,
                cost=meter(),
                epsilon=cross.epsilon,
            )

        # On the smaller side probes have fewer dimensions to miss.
        maps = [cross, cross.T] if n <= m else [cross.T, cross]
        return Chain(maps, exact, n + m, "frobenius_norm").run(method, options, form, listener)


@dataclass(frozen=True, eq=False)
class Solution:
    """α with (K + λI)α = y.

    Attributes:
        alpha: Shape (n,).
        residual: ‖(K + λI)α - y‖ / ‖y‖, by a product of its own.
        method: ``"exact"`` or ``"cg"``.
        converged: Whether the residual meets the tolerance.
        cost: What was spent.
    """

    alpha: Small
    residual: float
    method: str
    converged: bool
    cost: Cost


def solve(engine: Engine, y: Small, shift: float, method: str, rtol: float, most: int | None) -> Solution:
    """(K + λI)⁻¹y by a Cholesky factor of the dense kernel, or by SciPy's conjugate gradients.

    Args:
        engine: Of K.
        y: Shape (n,).
        shift: λ > 0.
        method: ``"auto"``, ``"exact"`` or ``"cg"``.
        rtol: Of the residual.
        most: Products at most; 10 n if ``None``.

    Raises:
        ValueError: For an unknown method, or a λ or tolerance that is not positive.
    """
    if method not in ("auto", "exact", "cg"):
        raise ValueError(f"unknown method {method!r}; choose one of 'auto', 'exact', 'cg'")
    if not shift > 0:
        raise ValueError(f"the shift λ must be positive, found {shift}; K alone may have no inverse")
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, found {rtol}; use a value such as 1e-6")
    n = len(y)
    with engine.session():
        meter, kernel = Meter([engine.ledger]), engine.kernel_map()

        def product(v: Small) -> Small:
            return on_host(kernel @ v) + shift * v

        exactly = method == "exact" or (method == "auto" and n <= _DENSE)
        alpha = _by_factor(engine, y, shift) if exactly else _by_gradients(product, y, rtol, most or 10 * n)
        length = float(np.linalg.norm(y))
        residual = float(np.linalg.norm(product(alpha) - y)) / length if length else 0.0
        # A dense solution is as good as the rounding of the products.
        floor = 100 * kernel.epsilon * n**0.5 if exactly else 0.0
        return Solution(
            alpha, residual, "exact" if exactly else "cg", residual <= max(10 * rtol, floor), meter()
        )


def _by_factor(engine: Engine, y: Small, shift: float) -> Small:
    from scipy.linalg import cho_factor, cho_solve

    shifted = on_host(engine.dense()) + shift * np.eye(len(y))
    found: Small = cho_solve(cho_factor(shifted), y)
    return found


def _by_gradients(product: Callable[[Small], Small], y: Small, rtol: float, most: int) -> Small:
    from scipy.sparse.linalg import LinearOperator, cg

    make: Any = LinearOperator
    operator = make((len(y), len(y)), matvec=lambda v: product(v.reshape(-1)), dtype=np.float64)
    found: Small
    found, _ = cg(operator, y, rtol=rtol, atol=0.0, maxiter=most)
    return found
