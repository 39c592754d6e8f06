"""One sketch, every metric: deflation by a shared basis, leave-one-out residuals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ntkscope.operators.space import Block, Map
from ntkscope.runs.deflation import Deflated
from ntkscope.runs.drive import SHORT_STRIDE
from ntkscope.runs.grams import Grams
from ntkscope.runs.moments import Moments
from ntkscope.runs.orthonormal import extend_basis
from ntkscope.runs.residuals import sketch_moments

__all__ = ["SketchRun"]


class SketchRun:
    """Traces and inner products of c kernels from shared probes and one shared basis.

    Signs Ω give Y_a = K_a Ω, the basis is Q = orth([Y_1 ... Y_c]), and Z_a = K_a Q.
    In the basis (Q, Q⊥) a kernel is [[A, Bᵀ], [B, D]]. A and B are known from Z, so

        tr K = tr A + tr D,
        ⟨K_1, K_2⟩ = ⟨A_1, A_2⟩ + 2 ⟨B_1, B_2⟩ + ⟨D_1, D_2⟩,

    and only D is estimated: with p = (I - QQᵀ) ω by pᵀKp and by (D_1 p)ᵀ(D_2 p).
    The probes of the sketch do that too, each with the basis that the *other* probes
    make (leave one out), so the trace of one kernel is XTrace (Epperly, Tropp,
    Webber 2024, arXiv 2301.07825). p is scaled to its expected length.

    A probe costs each kernel 1 product, and 1 more for every column it adds to Q: c
    at most, none once the ranks are exhausted. Norms and inner products take no
    second product with each probe, as Hutch++ on K₁K₂ does (arXiv 2511.10796).

    Args:
        maps: The kernels, c maps of shape (n, n).
        seed: Of the probes.
        stream: Of the probes.
    """

    stride = SHORT_STRIDE

    def __init__(self, maps: Sequence[Map], *, seed: int, stream: int = 0) -> None:
        self._maps = maps
        self._seed = seed
        self._stream = stream
        self._grams = Grams(maps[0])
        self._scale = [0.0] * len(maps)
        self._waiting: list[tuple[int, list[Block]]] = []
        self._ready: tuple[Block, int] | None = None
        self._pending: list[tuple[int, int]] = []
        self._spanned: list[tuple[int, int]] = []
        self._extended = 0
        self.quantum = len(maps)
        self.minimum = 2 * len(maps) * (1 + len(maps))

    def grow(self, products: int) -> None:
        """Draw probes and extend the basis while a kernel's share of the products lasts."""
        grams, count = self._grams, len(self._maps)
        budget = products // count
        while True:
            left = budget - grams.width("O") - grams.width("Q")
            if self._waiting or self._ready:
                if not self._extend(left):
                    return
            elif left > 0:
                self._draw(max(1, left // (1 + count)))
            else:
                return

    def _draw(self, width: int) -> None:
        start = self._grams.width("O")
        probes = self._maps[0].probes(start, start + width, seed=self._seed, stream=self._stream)
        images = [operator.apply(probes) for operator in self._maps]
        self._grams.append("O", probes, width)
        for a, image in enumerate(images):
            self._grams.append(f"Y{a}", image, width)
        self._waiting.append((width, images))

    def _extend(self, affordable: int) -> bool:
        """Multiply the new columns of Q that the oldest waiting probes make, if it can be paid."""
        if self._ready is None:
            self._ready = self._orthonormalise(*self._waiting[0])
        fresh, width = self._ready
        if width > affordable:
            return False
        images = [operator.apply(fresh) for operator in self._maps] if width else []
        self._grams.append("Q", fresh, width)
        for a, image in enumerate(images):
            self._grams.append(f"Z{a}", image, width)
        self._spanned.extend(self._pending)
        self._extended += self._waiting.pop(0)[0]
        self._ready = None
        return True

    def _orthonormalise(self, width: int, images: list[Block]) -> tuple[Block, int]:
        """The columns that these probes add to the basis, kernel by kernel at one scale."""
        space = self._maps[0]
        scaled = []
        for a, image in enumerate(images):
            longest = float(np.sqrt(space.inner(image, image).max()))
            self._scale[a] = max(self._scale[a], longest)
            # Kernels of very different size share the basis: none may be cut off by the other.
            scaled.append(image * (1 / self._scale[a]) if self._scale[a] else image)
        block, spanned = extend_basis(space, self._grams, "Q", space.concat(scaled), 1.0)
        self._pending = [(self._extended + j % width, j // width) for j in spanned]
        return block, len(spanned)

    def result(self) -> Moments:
        """The moments with their samples.

        Raises:
            ValueError: If fewer than two probes have run.
        """
        if self._grams.width("O") < 2:
            raise ValueError(f"the sketch has too few probes; spend {self.minimum} products or more")
        return sketch_moments(self._deflated())

    def _deflated(self) -> Deflated:
        return Deflated.from_grams(
            self._grams,
            count=len(self._maps),
            size=self._maps[0].shape[0],
            spanned=self._spanned,
            extended=self._extended,
            epsilon=max(operator.epsilon for operator in self._maps),
        )
