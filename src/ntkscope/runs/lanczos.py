"""Stochastic Lanczos quadrature: what random probes see of a spectrum, all probes in step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.space import Block, Map
from ntkscope.runs.eigenpairs import Eigenpairs, krylov_eigenpairs
from ntkscope.runs.quadrature import Quadrature
from ntkscope.runs.spectrum import Spectrum

__all__ = ["DeflatedLanczosRun", "LanczosRun", "lanczos_quadrature"]

Small = NDArray[np.float64]

#: Of the probes; estimates of the same seed use low streams.
_STREAM = 50
#: Eigenpairs are looked for in so many block products, with so many columns more than pairs.
_KRYLOV_STEPS, _EXTRA = 8, 2
#: A pair is taken out if its residual is below this share of its value: what is missed is its square.
_KNOWN = 1e-3


class LanczosRun:
    """The spectrum of a positive semidefinite map, from more and more probes.

    Args:
        operator: K, shape (n, n).
        steps: Lanczos steps m of every probe; as many products.
        zeros: Eigenvalues 0 that are known besides those of ``operator``.
        pairs: Eigenpairs that are known; the probes see what is orthogonal to them.
        seed: Of the probes.
    """

    stride = 4.0

    def __init__(
        self, operator: Map, steps: int, *, zeros: int = 0, pairs: Eigenpairs | None = None, seed: int = 0
    ) -> None:
        self._operator = operator
        self._pairs = pairs if pairs is not None and len(pairs) else None
        self._steps = min(steps, operator.shape[0] - (0 if self._pairs is None else len(self._pairs)))
        self._zeros = zeros
        self._seed = seed
        self._found: list[Quadrature] = []
        self._probes = 0
        self.quantum = self._steps
        self.minimum = 2 * self._steps

    def grow(self, products: int) -> None:
        """Probes until ``products`` have run in all; those that are new advance together."""
        wanted = products // self._steps
        if wanted > self._probes:
            probes, known = range(self._probes, wanted), None if self._pairs is None else self._pairs.vectors
            rules = lanczos_quadrature(self._operator, probes, self._steps, seed=self._seed, known=known)
            self._found.append(rules)
            self._probes = wanted

    def result(self) -> Spectrum:
        """The spectrum as the probes see it; a ValueError before the first one."""
        if not self._found:
            raise ValueError(f"there is no probe yet; spend {self.minimum} products")
        size = self._operator.shape[0] + self._zeros
        nothing = np.zeros(0)
        return Spectrum(
            Quadrature.joined(self._found),
            size,
            nothing if self._pairs is None else self._pairs.values,
            nothing if self._pairs is None else self._pairs.errors,
            self._zeros,
            "lanczos",
            seed=self._seed,
            epsilon=self._operator.epsilon,
        )


class DeflatedLanczosRun:
    """The same with the largest eigenpairs taken out first, of which most sums over eigenvalues are made.

    Pairs with a residual above a thousandth of their value stay in: those of a flat spectrum.

    Args:
        operator: K, shape (n, n).
        steps: Lanczos steps of every probe.
        pairs: How many eigenpairs are taken out at most.
        zeros: Eigenvalues 0 that are known besides.
        seed: Of all probes.
    """

    stride = 4.0

    def __init__(self, operator: Map, steps: int, *, pairs: int, zeros: int = 0, seed: int = 0) -> None:
        self._operator = operator
        self._steps = min(steps, operator.shape[0] - pairs)
        self._pairs = pairs
        self._options: dict[str, Any] = {"zeros": zeros, "seed": seed}
        self._run: LanczosRun | None = None
        self._before = _KRYLOV_STEPS * (pairs + _EXTRA) if pairs else 0
        self.quantum = self._steps
        self.minimum = self._before + 2 * self._steps

    def grow(self, products: int) -> None:
        """The eigenpairs, and probes until ``products`` have run in all."""
        if products < self.minimum and self._run is None:
            return
        if self._run is None:
            pairs = self._known() if self._pairs else None
            self._run = LanczosRun(self._operator, self._steps, pairs=pairs, **self._options)
        self._run.grow(products - self._before)

    def _known(self) -> Eigenpairs:
        found = krylov_eigenpairs(
            self._operator,
            self._pairs,
            # An error is the square of a residual.
            rtol=_KNOWN**2,
            extra=_EXTRA,
            most=self._before,
            columns=self._before,
            seed=self._options["seed"],
        )
        self._before = found.cost.products
        kept = int(np.argmin(np.append(found.residuals <= _KNOWN * found.values, False)))
        vectors = self._operator.combine(found.vectors, np.eye(len(found), kept))
        return Eigenpairs(
            found.values[:kept],
            vectors,
            found.residuals[:kept],
            found.errors[:kept],
            found.method,
            found.converged,
            found.cost,
        )

    def result(self) -> Spectrum:
        """The spectrum; a ValueError before the first probe."""
        if self._run is None:
            raise ValueError(f"there is no probe yet; spend {self.minimum} products")
        return self._run.result()


def lanczos_quadrature(
    operator: Map, probes: range, steps: int, *, seed: int, known: Block | None = None
) -> Quadrature:
    """Nodes and weights of Gauss rules: ωᵀf(K)ω / n ≈ Σⱼ wⱼ f(θⱼ) for every probe ω.

    The Lanczos recurrence of every probe (Golub and Welsch 1969; Ubaru, Chen and Saad 2017), all in
    step, so that every step is one product with the block of all probes. The bases are kept
    orthogonal to rounding, which takes ``steps`` blocks of memory; the rules are exact for polynomials
    of degree 2·steps - 1, and for everything once a probe's space is invariant.

    Args:
        operator: K, shape (n, n).
        probes: Which probes of the seed.
        steps: m, from 1 to n.
        seed: Of the probes.
        known: Orthonormal eigenvectors; n is less by their number then, and ω orthogonal to them.
    """
    count = len(probes)
    start = operator.probes(probes.start, probes.stop, seed=seed, stream=_STREAM)
    start = _without(operator, start, known)
    basis = [_scaled(operator, start, 1 / np.sqrt(operator.inner(start, start)))]
    diagonal, beside = np.zeros((count, steps)), np.zeros((count, steps))
    for step in range(steps):
        ahead = operator.apply(basis[-1])
        diagonal[:, step] = operator.inner(basis[-1], ahead)
        # Twice is enough to leave nothing but rounding along the basis.
        ahead = _without(operator, ahead, known)
        for _ in range(2):
            for vector in basis:
                ahead = ahead - _scaled(operator, vector, operator.inner(vector, ahead))
        lengths = np.sqrt(operator.inner(ahead, ahead))
        scale = np.abs(diagonal[:, : step + 1]).max(axis=1) + beside[:, :step].max(axis=1, initial=0.0)
        # What is left of an invariant space is rounding; a vector of zeros stays one.
        is_left = lengths > operator.epsilon * scale
        beside[:, step] = np.where(is_left, lengths, 0.0)
        if not is_left.any():
            break
        if step + 1 < steps:
            inverse = np.divide(1.0, lengths, out=np.zeros(count), where=is_left)
            basis.append(_scaled(operator, ahead, inverse))
    return Quadrature.of_recurrence(diagonal, beside)


def _without(operator: Map, block: Block, known: Block | None) -> Block:
    """What is orthogonal to known vectors."""
    if known is None:
        return block
    for _ in range(2):
        block = block - operator.combine(known, operator.gram(known, block))
    return block


def _scaled(operator: Map, block: Block, factors: Small) -> Block:
    """Every column times a number of its own."""
    return operator.combine(block, np.diag(factors))
