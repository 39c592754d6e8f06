"""The same verbs for anything with ``shape`` and ``@``: matrices, SciPy operators, NTKs.

Works through products alone; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from ntkscope import measure as _measure
from ntkscope.metrics import STANDARD
from ntkscope.metrics import check_metrics as _check_metrics
from ntkscope.operators.composed import as_map
from ntkscope.operators.space import Map
from ntkscope.results import Estimate, Measurement, Measurements, named_kernels
from ntkscope.runs.drive import Run
from ntkscope.settings import Limits, Method, Options, TraceMethod, options_of
from ntkscope.ways.table import methods_of

__all__ = [
    "METHODS",
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

#: The methods of every metric.
METHODS: dict[str, tuple[str, ...]] = {
    quantity: methods_of(quantity, models=False) for quantity in _measure.METHODS
}


def trace(
    A: Any,
    method: TraceMethod = "auto",
    products: int | None = None,
    seed: int | None = None,
    *,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Estimate:
    """Trace of a symmetric positive semidefinite operator.

    Args:
        A: Shape (n, n): an array of any array-API library, a SciPy LinearOperator, an NTK.
        method: One of ``METHODS["trace"]``.
        products: Products to spend. From n up the result is exact.
        seed: Of the probes; 0 if not given.
        options: All of how far to go as one :class:`ntkscope.Options`.
        **limits: Its fields by keyword: a tolerance or other limits.

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
    return _single("trace", [A], method, options_of(options, products, seed, limits, keeps=True))


def frobenius_norm(
    A: Any,
    method: Method = "auto",
    products: int | None = None,
    seed: int | None = None,
    *,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Estimate:
    """‖A‖_F = √tr(A²) of a symmetric operator.

    Arguments, result and errors are those of :func:`trace`.

    >>> import numpy as np
    >>> frobenius_norm(np.diag([3.0, 4.0]), method="exact").value
    5.0
    """
    return _single("frobenius_norm", [A], method, options_of(options, products, seed, limits, keeps=True))


def effective_rank(
    A: Any,
    method: Method = "auto",
    products: int | None = None,
    seed: int | None = None,
    *,
    trace_run: Run[Estimate] | Estimate | None = None,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Estimate:
    """(tr A)² / ‖A‖²_F, between 1 and the rank of A.

    Args:
        A: Shape (n, n), symmetric positive semidefinite.
        method: One of ``METHODS["effective_rank"]``.
        products: Products to spend; from n up the result is exact.
        seed: Of the probes; 0 if not given.
        trace_run: Where the trace comes from, if there is a better source than
            products with A: an estimate, or a run that grows along.
        options: All of how far to go as one :class:`ntkscope.Options`.
        **limits: Its fields by keyword.

    Returns:
        The estimate; nan with a note if A is zero.

    Raises:
        ValueError: As :func:`trace`.
        TypeError: As :func:`trace`.

    >>> import numpy as np
    >>> effective_rank(np.eye(4), method="exact").value
    4.0
    """
    chosen = options_of(options, products, seed, limits, keeps=True)
    return _single("effective_rank", [A], method, chosen, trace_run=trace_run)


def inner_product(
    A: Any,
    B: Any,
    method: Method = "auto",
    products: int | None = None,
    seed: int | None = None,
    *,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Estimate:
    """⟨A, B⟩ = tr(A B) of two symmetric operators of one shape.

    ``products`` counts the products with A and with B together; other arguments,
    result and errors are those of :func:`trace`.

    >>> import numpy as np
    >>> inner_product(np.diag([1.0, 2.0]), np.diag([3.0, 4.0]), method="exact").value
    11.0
    """
    return _single("inner_product", [A, B], method, options_of(options, products, seed, limits, keeps=True))


def alignment(
    A: Any,
    B: Any,
    method: Method = "auto",
    products: int | None = None,
    seed: int | None = None,
    *,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Estimate:
    """cos(A, B) = ⟨A, B⟩ / (‖A‖_F ‖B‖_F) of two symmetric operators of one shape.

    ``products`` counts the products with A and with B together; other arguments
    and errors are those of :func:`trace`. The result is nan, with a note, if A or
    B is zero.

    >>> import numpy as np
    >>> alignment(np.diag([1.0, 0.0]), np.diag([1.0, 0.0]), method="exact").value
    1.0
    """
    return _single("alignment", [A, B], method, options_of(options, products, seed, limits, keeps=True))


def measure(
    A: Any,
    others: Sequence[Any] = (),
    method: Method = "auto",
    products: int | None = None,
    seed: int | None = None,
    *,
    metrics: Sequence[str] = STANDARD,
    trace_run: Run[Estimate] | Estimate | None = None,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Measurement:
    """Trace, norm and effective rank of A, and its alignment with each of the others.

    ``products`` counts the products with all kernels together. A tolerance is met
    when every metric meets it. ``metrics`` names others of
    :data:`ntkscope.metrics.METRICS`. Other arguments and errors are those of
    :func:`effective_rank`.

    >>> import numpy as np
    >>> measure(np.eye(2), [np.diag([1.0, 0.0])], method="exact").alignment[0].value.__round__(4)
    0.7071
    """
    chosen = options_of(options, products, seed, limits, keeps=True)
    wanted = _check_metrics(metrics)
    return _measure.measure([A, *others], wanted, method, chosen, trace_run=trace_run)


def measure_all(
    operators: Sequence[Any] | Mapping[str, Any],
    method: Method = "auto",
    products: int | None = None,
    seed: int | None = None,
    *,
    metrics: Sequence[str] = STANDARD,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Measurements:
    """All metrics of several operators, and the alignment of every pair, from shared products.

    Every operator pays for its products once, however many pairs it is in.

    Args:
        operators: Of one shape (n, n), such as the NTKs of several checkpoints; a mapping gives them names.
        method: One of ``METHODS["measure_all"]``.
        products: Products to spend, all operators together.
        seed: Of the probes; 0 if not given.
        metrics: Which metrics.
        options: All of how far to go as one :class:`ntkscope.Options`.
        **limits: Its fields by keyword: a tolerance, met when every metric meets it, or other limits.

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
    chosen = options_of(options, products, seed, limits, keeps=True)
    wanted = _check_metrics(metrics)
    given, names = named_kernels(operators)
    return _measure.measure_all(given, wanted, method, chosen).named(names)


def _single(metric: str, operators: list[Any], method: str, options: Options, **sources: Any) -> Estimate:
    return _measure.single(metric, operators, method, options, **sources)
