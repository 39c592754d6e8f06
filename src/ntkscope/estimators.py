"""The front door: one function a metric, for anything with ``shape`` and ``@``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from ntkscope.operators.space import Map, as_map
from ntkscope.results import Estimate, Measurement
from ntkscope.runs.drive import Progress, Run, drive
from ntkscope.ways.products import METHODS, Request, make_runs

__all__ = [
    "METHODS",
    "Growth",
    "Map",
    "alignment",
    "as_map",
    "effective_rank",
    "frobenius_norm",
    "inner_product",
    "measure",
    "measure_all",
    "trace",
]


class Growth(TypedDict, total=False):
    """How far a run grows; every metric takes these, see :func:`~ntkscope.estimators.drive`.

    Attributes:
        rtol: Relative tolerance; 0.01 if neither ``products`` nor a tolerance is given.
        atol: Absolute tolerance.
        max_products: Most products that may be spent for a tolerance.
        seconds: Most seconds that may be spent.
        progress: Called with (estimate, spent, budget) after every step.
    """

    rtol: float | None
    atol: float | None
    max_products: int | None
    seconds: float | None
    progress: Progress | None


def trace(
    A: Any, method: str = "auto", products: int | None = None, seed: int = 0, **growth: Unpack[Growth]
) -> Estimate:
    """Trace of a symmetric positive semidefinite operator.

    Args:
        A: Shape (n, n): an array of any array-API library, a SciPy LinearOperator, an NTK.
        method: One of ``METHODS["trace"]``.
        products: Products to spend. From n up the result is exact.
        seed: Of the probes.
        **growth: A tolerance or other limits, see :class:`Growth`.

    Returns:
        The estimate. Its cost counts the products that really ran.

    Raises:
        ValueError: For an unknown method, a budget below the method's minimum, a
            tolerance that is not positive, or an operator that is not square.
        TypeError: If A is no operator, or lacks the mode that the method needs.

    >>> import numpy as np
    >>> trace(np.diag([3.0, 2.0, 1.0]), method="exact").value
    6.0
    """
    return _one(Request("trace", [A], method, seed), products, growth)


def frobenius_norm(
    A: Any, method: str = "auto", products: int | None = None, seed: int = 0, **growth: Unpack[Growth]
) -> Estimate:
    """‖A‖_F = √tr(A²) of a symmetric operator.

    Arguments, result and errors are those of :func:`trace`.

    >>> import numpy as np
    >>> frobenius_norm(np.diag([3.0, 4.0]), method="exact").value
    5.0
    """
    return _one(Request("frobenius_norm", [A], method, seed), products, growth)


def effective_rank(
    A: Any,
    method: str = "auto",
    products: int | None = None,
    seed: int = 0,
    *,
    trace_run: Run[Estimate] | Estimate | None = None,
    **growth: Unpack[Growth],
) -> Estimate:
    """(tr A)² / ‖A‖²_F, between 1 and the rank of A.

    Args:
        A: Shape (n, n), symmetric positive semidefinite.
        method: One of ``METHODS["effective_rank"]``.
        products: Products to spend; from n up the result is exact.
        seed: Of the probes.
        trace_run: Where the trace comes from, if there is a better source than
            products with A: an estimate, or a run that grows along.
        **growth: A tolerance or other limits, see :class:`Growth`.

    Returns:
        The estimate; nan with a note if A is zero.

    Raises:
        ValueError: As :func:`trace`.
        TypeError: As :func:`trace`.

    >>> import numpy as np
    >>> effective_rank(np.eye(4), method="exact").value
    4.0
    """
    return _one(Request("effective_rank", [A], method, seed, trace_run), products, growth)


def inner_product(
    A: Any, B: Any, method: str = "auto", products: int | None = None, seed: int = 0, **growth: Unpack[Growth]
) -> Estimate:
    """⟨A, B⟩ = tr(A B) of two symmetric operators of one shape.

    ``products`` counts the products with A and with B together; other arguments,
    result and errors are those of :func:`trace`.

    >>> import numpy as np
    >>> inner_product(np.diag([1.0, 2.0]), np.diag([3.0, 4.0]), method="exact").value
    11.0
    """
    return _one(Request("inner_product", [A, B], method, seed), products, growth)


def alignment(
    A: Any, B: Any, method: str = "auto", products: int | None = None, seed: int = 0, **growth: Unpack[Growth]
) -> Estimate:
    """cos(A, B) = ⟨A, B⟩ / (‖A‖_F ‖B‖_F) of two symmetric operators of one shape.

    ``products`` counts the products with A and with B together; other arguments
    and errors are those of :func:`trace`. The result is nan, with a note, if A or
    B is zero.

    >>> import numpy as np
    >>> alignment(np.diag([1.0, 0.0]), np.diag([1.0, 0.0]), method="exact").value
    1.0
    """
    return _one(Request("alignment", [A, B], method, seed), products, growth)


def measure(
    A: Any,
    others: Sequence[Any] = (),
    method: str = "auto",
    products: int | None = None,
    seed: int = 0,
    *,
    trace_run: Run[Estimate] | Estimate | None = None,
    **growth: Unpack[Growth],
) -> Measurement:
    """Trace, norm and effective rank of A, and its alignment with each of the others.

    ``products`` counts the products with all kernels together. A tolerance is met
    when every metric meets it. Other arguments and errors are those of
    :func:`effective_rank`.

    >>> import numpy as np
    >>> measure(np.eye(2), [np.diag([1.0, 0.0])], method="exact").alignment[0].value.__round__(4)
    0.7071
    """
    run, exact = make_runs(Request("measure", [A, *others], method, seed, trace_run))
    result: Measurement = drive(run, exact=exact, products=products, **growth)
    return result


def measure_all(
    operators: Sequence[Any],
    method: str = "auto",
    products: int | None = None,
    seed: int = 0,
    **growth: Unpack[Growth],
) -> list[Measurement]:
    """All metrics of several operators, and the alignment of every pair, from shared products.

    Every operator pays for its products once, however many pairs it is in.

    Args:
        operators: Of one shape (n, n), such as the NTKs of several checkpoints.
        method: One of ``METHODS["measure_all"]``.
        products: Products to spend, all operators together.
        seed: Of the probes.
        **growth: A tolerance, met when every metric meets it, or other limits.

    Returns:
        One measurement an operator; its ``alignment`` lists the other operators in order.

    Raises:
        ValueError: As :func:`trace`, and if there is no operator.
        TypeError: As :func:`trace`.

    >>> import numpy as np
    >>> both = measure_all([np.eye(2), np.diag([1.0, 0.0])], method="exact")
    >>> [round(m.alignment[0].value, 4) for m in both]
    [0.7071, 0.7071]
    """
    if not operators:
        raise ValueError("measure_all needs at least one operator, found none; pass a list of operators")
    run, exact = make_runs(Request("measure_all", list(operators), method, seed))
    result: list[Measurement] = drive(run, exact=exact, products=products, **growth)
    return result


def _one(request: Request, products: int | None, growth: Growth) -> Estimate:
    run, exact = make_runs(request)
    result: Estimate = drive(run, exact=exact, products=products, **growth)
    return result
