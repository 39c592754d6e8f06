"""Kernels seen through the small matrices of a basis, with all probes or without one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ntkscope.runs.grams import Grams

__all__ = ["Deflated"]

Small = NDArray[np.float64]

#: What a probe's own directions hold of a product that the others span: rounding, below this share.
_FREE = 1e-6


@dataclass(frozen=True, eq=False)
class Deflated:
    """c kernels seen through a basis Q of r columns and k probes ω.

    With w = Qᵀω, p = ω - Qw (the part of a probe that the basis misses).

    Attributes:
        size: n.
        core: A_a = QᵀK_aQ, shape (c, r, r).
        squares: (K_aQ)ᵀ(K_bQ), shape (c, c, r, r).
        inside: w, shape (r, k).
        across: QᵀK_ap, shape (c, r, k).
        lifted: (K_aQ)ᵀK_bp, shape (c, c, r, k).
        lengths: ‖p‖², shape (k,).
        forms: pᵀK_ap, shape (c, k).
        products: (K_ap)ᵀ(K_bp), shape (c, c, k).
        lost: Orthonormal directions of the basis that probe i alone supplies, shape
            (k, r, c); zero columns where it supplies fewer.
        rank: Columns of the basis, less those that were projected out.
        free: Shape (c, k): the other probes span the kernel's product with this one, so for this
            kernel the basis is exhausted without it.
        epsilon: Relative rounding error of the products.
    """

    size: int
    core: Small
    squares: Small
    inside: Small
    across: Small
    lifted: Small
    lengths: Small
    forms: Small
    products: Small
    lost: Small
    rank: int
    free: NDArray[np.bool_]
    epsilon: float

    @classmethod
    def from_grams(
        cls,
        grams: Grams,
        *,
        count: int,
        size: int,
        spanned: list[tuple[int, int]],
        extended: int,
        epsilon: float,
    ) -> Deflated:
        """Assemble from the Gram matrices of Ω ("O"), Y_a ("Ya"), Q and Z_a ("Za")."""
        kernels = range(count)
        # In single precision Q is orthonormal to 1e-7; its Gram matrix makes up for that.
        root = _inverse_square_root(grams.gram("Q", "Q"))
        inside = root @ grams.gram("Q", "O")
        core = np.array([root @ grams.gram("Q", f"Z{a}") @ root for a in kernels])
        core = (core + core.transpose(0, 2, 1)) / 2
        squares = np.array([[root @ grams.gram(f"Z{a}", f"Z{b}") @ root for b in kernels] for a in kernels])
        images = np.array([root @ grams.gram("Q", f"Y{a}") for a in kernels])
        lost = _lost_directions(images, spanned, inside.shape[1])
        lifted = np.array([[root @ grams.gram(f"Z{a}", f"Y{b}") for b in kernels] for a in kernels])
        crossed = np.array([[grams.inner(f"Y{a}", f"Y{b}") for b in kernels] for a in kernels])
        forms = np.array([grams.inner("O", f"Y{a}") for a in kernels])
        taken = np.einsum("abrk,rk->abk", lifted, inside)
        lifted = lifted - squares @ inside
        # (K_ap)ᵀ(K_bp) = y_aᵀy_b - y_bᵀZ_aw - wᵀZ_bᵀ(y_a - Z_aw), with y_a - Z_aw = K_ap.
        products = crossed - taken - np.einsum("bark,rk->abk", lifted, inside)
        return cls(
            size=size,
            core=core,
            squares=squares,
            inside=inside,
            across=images - core @ inside,
            lifted=lifted,
            lengths=grams.inner("O", "O") - np.sum(inside**2, axis=0),
            forms=forms + np.einsum("rk,ark->ak", inside, core @ inside - 2 * images),
            products=products,
            lost=lost,
            rank=len(inside),
            free=_free_probes(images, lost, extended),
            epsilon=epsilon,
        )

    def without(self, probe: int) -> Deflated:
        """The same with neither the probe nor what it alone supplies to the basis."""
        lost = self.lost[probe]
        lost = lost[:, np.any(lost != 0, axis=0)]
        keep = np.arange(self.inside.shape[1]) != probe
        share = (lost.T @ self.inside)[:, keep]
        back = lost @ share
        across = self.across[:, :, keep]
        lifted = self.lifted[:, :, :, keep]
        added = self.squares @ back
        forms = self.forms[:, keep] + np.sum(back * (2 * across + self.core @ back), axis=1)
        products = self.products[:, :, keep] + np.sum(back * (lifted + added), axis=2)
        products = products + np.sum(back * lifted.transpose(1, 0, 2, 3), axis=2)
        return dataclasses.replace(
            self,
            core=_outside(_outside(self.core, lost).swapaxes(-1, -2), lost).swapaxes(-1, -2),
            squares=_outside(_outside(self.squares, lost).swapaxes(-1, -2), lost).swapaxes(-1, -2),
            inside=self.inside[:, keep] - back,
            across=_outside(across + self.core @ back, lost),
            lifted=_outside(lifted + added, lost),
            lengths=self.lengths[keep] + np.sum(share**2, axis=0),
            forms=forms,
            products=products,
            lost=_orthonormalised(_outside(self.lost[keep], lost)),
            rank=self.rank - lost.shape[1],
            free=self.free[:, keep],
        )


def _inverse_square_root(gram: Small) -> Small:
    if not len(gram):
        return gram
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    root: Small = (vectors / np.sqrt(values)) @ vectors.T
    return root


def _lost_directions(images: Small, spanned: list[tuple[int, int]], probes: int) -> Small:
    """For every probe, what no other probe supplies: the dual basis of the spanned columns."""
    count, rank, _ = images.shape
    lost = np.zeros((probes, rank, count))
    if rank:
        columns = np.stack([images[kernel, :, probe] for probe, kernel in spanned], axis=1)
        columns = columns / np.linalg.norm(columns, axis=0)
        dual = np.linalg.inv(columns).T
        for column, (probe, kernel) in enumerate(spanned):
            lost[probe, :, kernel] = dual[:, column]
    return _orthonormalised(lost)


def _outside(columns: Small, lost: Small) -> Small:
    """(I - LLᵀ) X, for X of shape (..., r, m)."""
    rest: Small = columns - lost @ (lost.T @ columns)
    return rest


def _orthonormalised(directions: Small) -> Small:
    """Every slice (r, c) with orthonormal columns of the same span; zero columns stay."""
    result = np.zeros_like(directions)
    for column in range(directions.shape[2]):
        vector = directions[:, :, column]
        length = np.linalg.norm(vector, axis=1, keepdims=True)
        unit = vector / np.where(length > 0, length, 1)
        for _ in range(2):
            for before in range(column):
                other = result[:, :, before]
                unit = unit - other * np.sum(other * unit, axis=1, keepdims=True)
        rest = np.linalg.norm(unit, axis=1, keepdims=True)
        result[:, :, column] = np.where(rest > 1e-12, unit / np.where(rest > 0, rest, 1), 0)
    return result


def _free_probes(images: Small, lost: Small, extended: int) -> NDArray[np.bool_]:
    """Which of the kernels' products need no direction that the probe alone supplies, shape (c, k).

    A product that adds no column of its own is not enough: that of a second kernel may need the
    column that the first kernel's product with the same probe has added.
    """
    count, _, probes = images.shape
    free = np.zeros((count, probes), dtype=bool)
    own = np.einsum("krc,ark->akc", lost, images)
    lengths = np.linalg.norm(images, axis=1)
    free[:, :extended] = np.all(np.abs(own) <= _FREE * lengths[:, :, None], axis=2)[:, :extended]
    return free
