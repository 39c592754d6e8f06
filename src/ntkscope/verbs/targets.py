"""The kernel and what is to be learned: targets, losses, and how fast they are fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray

from ntkscope import measure
from ntkscope.engines.base import Engine
from ntkscope.results import Estimate
from ntkscope.runs.eigenpairs import Eigenpairs
from ntkscope.settings import Limits, Method, Options, options_of
from ntkscope.ways import spectrum, targets
from ntkscope.ways.dense import on_host

__all__ = ["TargetVerbs"]

#: How (K + λI)⁻¹ is applied.
InverseMethod: TypeAlias = Literal["auto", "exact", "cg"]


class TargetVerbs:
    """What a kernel says of vectors on its state."""

    engine: Engine

    def target_alignment(
        self,
        y: Any,
        centered: bool = False,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        axis: int = 0,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """YᵀKy / (‖K‖_F ‖y‖²), the cosine of K and yyᵀ: 1 if K moves the state along y alone.

        One VJP gives yᵀKy = ‖Jᵀy‖²; the error is that of the norm.

        Args:
            y: The targets, or residuals, of the state's shape or flattened; one-hot for classes.
            centered: Whether the samples' mean is taken out of K and y: HKH and Hy, H = I - 11ᵀ/B.
            method: Of the norm, as in :meth:`~ntkscope.NTK.frobenius_norm`; centred, one of those for
                matrices.
            products: NTK products to spend on it.
            seed: Of the probes; 0 if not given.
            axis: The state's axis of samples, for ``centered``.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword, as in :meth:`~ntkscope.NTK.trace`.

        Raises:
            ValueError: If y has another shape than the state, is not finite, or zero.

        >>> import torch
        >>> from ntkscope import NTK
        >>> ntk = NTK(torch.nn.Linear(2, 1, bias=False), torch.diag(torch.tensor([3.0, 2.0])))
        >>> round(ntk.target_alignment(torch.tensor([1.0, 0.0])).value, 4)  # 9 / √(81 + 16)
        0.9138
        """
        chosen = options_of(options, products, seed, limits)

        def norm_of(kernel: Any) -> Estimate:
            return measure.single("frobenius_norm", [kernel], method, chosen)

        return targets.alignment(self, y, axis if centered else None, norm_of)

    def target_energy(self, y: Any, k: int = 10, *, pairs: Eigenpairs | None = None) -> NDArray[np.float64]:
        """(vᵢᵀy)² / ‖y‖² of the k largest eigenpairs: what share of y is learned along each of them.

        Args:
            y: As in :meth:`target_alignment`.
            k: How many eigenvectors.
            pairs: From :meth:`~ntkscope.NTK.eigenpairs`, if they are known.

        Returns:
            Shares, shape (k,), fewer where the rank of K is smaller; their sum is at most 1.

        Raises:
            ValueError: As :meth:`target_alignment`.
        """
        vector = targets.vector_of(self.engine, y)
        length = float(vector @ vector)
        if not length > 0:
            raise ValueError("the targets are zero; there is no energy to share")
        known = spectrum.eigenpairs(self, k) if pairs is None else pairs
        shares: NDArray[np.float64] = (on_host(known.vectors).T @ vector) ** 2 / length
        return shares

    def inverse_form(
        self,
        y: Any,
        shift: float,
        method: InverseMethod = "auto",
        *,
        rtol: float = 1e-4,
        max_products: int | None = None,
    ) -> Estimate:
        """Yᵀ(K + λI)⁻¹y: what it costs to fit y, as in generalisation bounds and Gaussian processes.

        Args:
            y: As in :meth:`target_alignment`.
            shift: λ > 0.
            method: ``"cg"``: SciPy's conjugate gradients, an NTK product a step. ``"exact"``: the dense
                kernel's Cholesky factor. ``"auto"``: dense up to n = 512.
            rtol: The relative tolerance of conjugate gradients.
            max_products: NTK products at most; 10 n if not given.

        Returns:
            The estimate. In place of a standard error it has half the width of an interval that holds
            the value for certain, up to rounding, by the residual: ‖r‖²/λ.

        Raises:
            ValueError: If λ is not positive, for an unknown method, and as :meth:`target_alignment`.
        """
        return targets.inverse_form(self.engine, y, shift, method, rtol, max_products)

    def loss_speed(self, loss: Any) -> Estimate:
        """‖Jᵀ∂L/∂h‖² = gᵀKg: how fast gradient flow lowers a loss, -dL/dt; one VJP, exact.

        Args:
            loss: Takes the state, in its shape, to one number; or its gradient g.

        Raises:
            TypeError: If the loss is not one number.
            ValueError: If its gradient is not finite or has the wrong shape.

        >>> import torch
        >>> from ntkscope import NTK
        >>> ntk = NTK(torch.nn.Linear(2, 1, bias=False), torch.eye(2))
        >>> ntk.loss_speed(lambda h: 3 * h.sum()).value
        18.0
        """
        return targets.speed(self.engine, loss)

    def loss_speeds(self, losses: Mapping[str, Any]) -> dict[str, Estimate]:
        """The share gᵢᵀK Σⱼgⱼ of every term in the speed of a sum of losses; a VJP a term, exact.

        A term with a small share is hardly trained, and one with a negative share is made worse by
        the others: what the terms of a physics-informed loss are weighted by.

        Args:
            losses: Terms by name, each as in :meth:`loss_speed`, with its weight in it.

        Raises:
            TypeError: As :meth:`loss_speed`.
            ValueError: As :meth:`loss_speed`, and if there is no term.
        """
        return targets.speeds(self.engine, losses)
