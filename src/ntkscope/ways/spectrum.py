"""Ways to eigenvalues: all of a dense kernel, the largest in a Krylov space, their density by probes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.base import Refusal
from ntkscope.operators.composed import KernelOfFactor, as_factor, as_map
from ntkscope.operators.ledger import Meter
from ntkscope.operators.space import Block, Map
from ntkscope.progress import progress_bar
from ntkscope.results import Estimate
from ntkscope.runs.drive import drive
from ntkscope.runs.eigenpairs import Eigenpairs, krylov_eigenpairs
from ntkscope.runs.group import MappedRun, Once, Priced
from ntkscope.runs.lanczos import DeflatedLanczosRun
from ntkscope.runs.spectrum import Spectrum
from ntkscope.settings import DEFAULT_BUDGET, Options, check_minimum
from ntkscope.ways.dense import dense_map, dense_matrix
from ntkscope.ways.exact import Tiles
from ntkscope.ways.plan import USUAL
from ntkscope.ways.products import HutchPlusPlus

__all__ = ["METHODS", "eigenpairs", "operator_norm", "over_spectrum", "spectrum"]

Small = NDArray[np.float64]
Found = TypeVar("Found")

#: How eigenvalues are found, for pairs and for densities.
METHODS = {"eigenpairs": ("auto", "exact", "krylov"), "spectrum": ("auto", "exact", "lanczos")}

# Lanczos steps of a probe, and eigenpairs that are taken out, at most.
_STEPS, _PAIRS = 40, 10
# A space that is restarted may take more products than a dense kernel, so many times at most.
_MOST = 10
# Below this size a dense kernel costs less than thinking about it.
_SMALL = 128
# What LAPACK reaches while it makes a matrix tridiagonal, half of it bound by memory.
_LAPACK_FLOPS = 5e9


class _Kernel:
    """The smaller one of K = JJᵀ and JᵀJ, which have the same eigenvalues but for zeros.

    Args:
        operator: An NTK, a matrix, anything with ``shape`` and ``@``.

    Raises:
        ValueError: If it is not square.
    """

    def __init__(self, operator: Any) -> None:
        self._operator, self._engine = operator, getattr(operator, "engine", None)
        whole, factor = as_map(operator), as_factor(operator)
        self.n = whole.shape[0]
        if whole.shape[0] != whole.shape[1]:
            raise ValueError(f"a kernel is square, found shape {whole.shape}; pass K, not the Jacobian")
        self._factor = factor if factor is not None and factor.shape[1] < self.n else None
        self.map: Map = whole if self._factor is None else KernelOfFactor(self._factor.T)
        self.size = self.map.shape[0]
        self.zeros = self.n - self.size
        budget = DEFAULT_BUDGET if self._engine is None else self._engine.budget
        # Half of the budget is left to the products.
        self.columns = max(1, budget // (4 * 8 * self.size))

    @contextmanager
    def metered(self) -> Iterator[Meter]:
        """What is spent on it, in the engine's session."""
        with contextlib.ExitStack() as stack:
            if self._engine is not None:
                stack.enter_context(self._engine.session())
            yield Meter(self.map.ledgers)

    def dense(self) -> Small:
        """The matrix, on the host in float64: by tiles of K from layer factors, or column by column."""
        return dense_matrix(self._operator) if self._factor is None else dense_map(self.map)

    @functools.cached_property
    def dense_price(self) -> float:
        """NTK products that cost as much as the dense kernel and its eigenvalues; inf if it is too large.

        Prices come from counts at fixed speeds: what is found must not depend on the clock.
        """
        engine, size = self._engine, self.size
        if engine is None or size <= _SMALL:
            return size
        if 3 * 8 * size**2 > engine.budget:
            return math.inf
        sizes, way = engine.sizes(), HutchPlusPlus()
        eigenvalues = 4 / 3 * size**3 / _LAPACK_FLOPS / way.product_seconds(sizes, USUAL)
        if self._factor is not None or isinstance(engine.samples(), Refusal):
            return size + eigenvalues
        return Tiles().seconds(sizes, USUAL, 0.0) / way.product_seconds(sizes, USUAL) + eigenvalues

    def is_dense(self, method: str, products: int) -> bool:
        """Whether all eigenvalues are found, as asked for or since they cost no more."""
        return method == "exact" or (method == "auto" and self.dense_price <= max(products, _SMALL))

    def is_cheap_for(self, count: int) -> bool:
        """Whether it costs no more than a Krylov space for so many pairs is expected to."""
        return self.size <= _SMALL or 4 * count >= self.size or self.dense_price <= 4 * (count + 2)

    def exact_spectrum(self) -> Spectrum:
        """All eigenvalues."""
        values = np.linalg.eigvalsh(self.dense())
        return Spectrum.of_eigenvalues(values, zeros=self.zeros, epsilon=self.map.epsilon)

    def run(self, products: int, steps: int | None, seed: int) -> DeflatedLanczosRun:
        """Random probes that see the density, for about so many products."""
        return DeflatedLanczosRun(
            self.map,
            steps=max(2, min(_STEPS, products // 10)) if steps is None else steps,
            pairs=min(_PAIRS, products // 20, self.size // 8),
            zeros=self.zeros,
            seed=seed,
        )

    def block(self, columns: Small) -> Block:
        """A small matrix as a block of the map."""
        return self.map.combine(self.map.identity(0, self.size), columns)

    def lifted(self, pairs: Eigenpairs) -> Eigenpairs:
        """The pairs of K: u = Jv/√λ where they are those of JᵀJ."""
        if self._factor is None or not len(pairs):
            return pairs
        inverse = np.diag(1 / np.sqrt(pairs.values))
        vectors = self._factor.combine(self._factor.apply(pairs.vectors), inverse)
        # ‖Ku - λu‖ = ‖J(JᵀJv - λv)‖/√λ.
        residuals = pairs.residuals * np.sqrt(pairs.values[0] / pairs.values)
        return dataclasses.replace(pairs, vectors=vectors, residuals=residuals)


def eigenpairs(
    operator: Any,
    count: int,
    *,
    method: str = "auto",
    rtol: float = 1e-4,
    max_products: int | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """The largest eigenpairs of a kernel; see :meth:`ntkscope.NTK.eigenpairs`."""
    _check_method("eigenpairs", method)
    kernel = _Kernel(operator)
    if not 1 <= count <= kernel.n:
        raise ValueError(f"there are 1 to n={kernel.n} eigenpairs, found k={count}; ask for fewer")
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, found {rtol}; use a value such as 1e-6")
    with kernel.metered() as meter:
        if method == "exact" or (method == "auto" and kernel.is_cheap_for(count)):
            found = _exact_pairs(kernel, min(count, kernel.size))
        else:
            found = krylov_eigenpairs(
                kernel.map,
                min(count, kernel.size),
                rtol=rtol,
                most=_MOST * kernel.size if max_products is None else max_products,
                columns=max(kernel.columns, 4 * (count + 2)),
                seed=seed,
            )
        return dataclasses.replace(kernel.lifted(found), cost=meter())


def operator_norm(operator: Any, **options: Any) -> Estimate:
    """‖K‖₂, the largest eigenvalue; options as of :func:`eigenpairs`."""
    found = eigenpairs(operator, 1, **options)
    exact = found.method == "exact"
    return Estimate(
        float(found.values[0]) if len(found) else 0.0,
        0.0 if exact else (float(found.errors[0]) if len(found) else None),
        found.method,
        "operator_norm",
        cost=found.cost,
        seed=None if exact else options.get("seed", 0),
        converged=None if exact else found.converged,
        epsilon=as_map(operator).epsilon,
    )


def spectrum(
    operator: Any, *, method: str = "auto", products: int = 400, seed: int = 0, steps: int | None = None
) -> Spectrum:
    """The density of a kernel's eigenvalues; see :meth:`ntkscope.NTK.spectrum`."""
    _check_method("spectrum", method)
    kernel, options = _Kernel(operator), Options(products=products, seed=seed)
    with kernel.metered() as meter:
        if kernel.is_dense(method, products):
            found = kernel.exact_spectrum()
        else:
            run = kernel.run(products, steps, seed)
            check_minimum(options, run.minimum)
            run.grow(products)
            found = run.result()
        return dataclasses.replace(found, cost=meter())


def over_spectrum(
    operator: Any,
    form: Callable[[Spectrum], Found],
    quantity: str,
    *,
    method: str = "auto",
    options: Options,
    steps: int | None = None,
) -> Found:
    """What follows from a spectrum, to a tolerance or a budget.

    Args:
        operator: The kernel.
        form: Takes a spectrum to an estimate or a list of them.
        quantity: What it is, for the progress bar.
        method: One of ``METHODS["spectrum"]``.
        options: How far.
        steps: Of a probe.
    """
    _check_method("spectrum", method)
    kernel = _Kernel(operator)
    budget = options.products or options.max_products or 10 * _STEPS
    with kernel.metered() as meter, progress_bar(options.progress, quantity) as listener:

        def finish(found: Spectrum) -> Found:
            return form(dataclasses.replace(found, cost=meter()))

        if kernel.is_dense(method, budget):
            return finish(kernel.exact_spectrum())
        run = MappedRun(kernel.run(budget, steps, options.seed), finish)
        exact = None
        if method == "auto" and math.isfinite(kernel.dense_price):
            price = math.ceil(kernel.dense_price)
            exact = Priced(lambda: Once(lambda: finish(kernel.exact_spectrum())), price)
        return drive(run, options, exact=exact, progress=listener.listener)


def _exact_pairs(kernel: _Kernel, count: int) -> Eigenpairs:
    # It takes a tenth of a second to load, which little else needs.
    from scipy.linalg import eigh

    size = kernel.size
    dense = kernel.dense()
    values, vectors = eigh(dense, subset_by_index=[size - count, size - 1])
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1].copy()
    residuals = np.linalg.norm(dense @ vectors - vectors * values, axis=0)
    positive = values > size * kernel.map.epsilon * values[0]
    chosen = np.flatnonzero(positive)
    return Eigenpairs(
        values[chosen],
        kernel.block(vectors[:, chosen]),
        residuals[chosen],
        np.zeros(len(chosen)),
        "exact",
        True,
    )


def _check_method(quantity: str, method: str) -> None:
    known = METHODS[quantity]
    if method not in known:
        raise ValueError(
            f"unknown method {method!r} for {quantity}; choose one of " + ", ".join(map(repr, known))
        )
