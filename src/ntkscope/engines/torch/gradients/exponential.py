"""Gradients through the exponential of a skew-symmetric matrix, by which weights are kept orthogonal.

With A = -Aᵀ = Z T Zᵀ in real Schur form, whose blocks are ω_p (0 1; -1 0), and R = exp(A/2), the
gradient of A from G, that of exp A, is Z S(Zᵀ Rᵀ G Rᵀ Z) Zᵀ. S takes the 2 × 2 blocks (p, q) of a matrix
apart into the part that commutes with (0 1; -1 0) and the rest, and multiplies them by
sinc((ω_p - ω_q)/2) and sinc((ω_p + ω_q)/2) (Daleckii and Krein; Higham, Functions of Matrices, §3.2).
Torch's own way takes the exponential of a matrix of twice the size for every gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

__all__ = ["SkewExponential", "skew_exponential"]


@dataclass(frozen=True)
class SkewExponential:
    """exp A of one skew-symmetric A.

    Attributes:
        before: Zᵀ Rᵀ, shape (2m, n), the first rows of all m blocks before the second ones.
        after: Rᵀ Z, shape (n, 2m).
        basis: Z, shape (n, 2m); where a block is a single zero, its second column is zero.
        alike: sinc((ω_p - ω_q)/2), shape (m, m).
        opposite: sinc((ω_p + ω_q)/2).
    """

    before: Tensor
    after: Tensor
    basis: Tensor
    alike: Tensor
    opposite: Tensor

    def pulled(self, gradients: Tensor) -> Tensor:
        """The gradients of A from those of exp A, both (..., n, n): four products of matrices each."""
        m = len(self.alike)
        rotated = self.before @ gradients @ self.after
        (a, b), (c, d) = (rows.split(m, dim=-1) for rows in rotated.split(m, dim=-2))
        same, turned = (a + d) * (self.alike / 2), (b - c) * (self.alike / 2)
        mirrored, crossed = (a - d) * (self.opposite / 2), (b + c) * (self.opposite / 2)
        upper = torch.cat([same + mirrored, crossed + turned], dim=-1)
        lower = torch.cat([crossed - turned, same - mirrored], dim=-1)
        return self.basis @ torch.cat([upper, lower], dim=-2) @ self.basis.mT


def skew_exponential(a: Tensor) -> SkewExponential | None:
    """What gradients through exp A need, in the dtype of A; ``None`` if A is not real and skew-symmetric."""
    if a.dim() != 2 or a.is_complex() or a.shape[0] != a.shape[1] or not torch.equal(a, -a.mT):
        return None
    matrix = a.detach().double().cpu().numpy()
    if not np.isfinite(matrix).all():
        return None
    form, vectors = scipy.linalg.schur(matrix, output="real")
    size, smallest = len(matrix), np.finfo(float).eps * max(1.0, float(np.abs(matrix).max()))
    first, second, angles = [], [], []
    place = 0
    while place < size:
        first.append(vectors[:, place])
        is_pair = place + 1 < size and abs(form[place + 1, place]) > smallest
        second.append(vectors[:, place + 1] if is_pair else np.zeros(size))
        angles.append((form[place, place + 1] - form[place + 1, place]) / 2 if is_pair else 0.0)
        place += 1 + is_pair
    basis, omega = np.stack(first + second, axis=1), np.array(angles)
    x, y = basis[:, : len(omega)], basis[:, len(omega) :]
    cosine, sine = np.cos(omega / 2), np.sin(omega / 2)
    # Rᵀ = exp(-A/2), of which A x = -ω y and A y = ω x.
    back = np.concatenate([x * cosine + y * sine, y * cosine - x * sine], axis=1)
    forth = np.concatenate([x * cosine - y * sine, y * cosine + x * sine], axis=1)
    alike, opposite = (np.sinc((omega[:, None] + sign * omega) / (2 * np.pi)) for sign in (-1.0, 1.0))
    made = (
        torch.from_numpy(np.ascontiguousarray(v)).to(a.device, a.dtype)
        for v in (forth.T, back, basis, alike, opposite)
    )
    return SkewExponential(*made)
