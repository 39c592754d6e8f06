"""Eigenvalues: the largest ones, their density, and every sum over them."""

from __future__ import annotations

from typing import Literal, TypeAlias, Unpack

from ntkscope import measure
from ntkscope.engines.base import Engine
from ntkscope.results import Estimate
from ntkscope.runs.eigenpairs import Eigenpairs
from ntkscope.runs.spectrum import Spectrum
from ntkscope.runs.statistics import Summary, combine_independent
from ntkscope.settings import Limits, Method, Options, options_of
from ntkscope.ways import spectrum as ways

__all__ = ["SpectrumVerbs"]

#: How eigenpairs are found.
PairMethod: TypeAlias = Literal["auto", "exact", "krylov"]

#: How the density of eigenvalues is found.
SpectrumMethod: TypeAlias = Literal["auto", "exact", "lanczos"]

#: Moments that share one run.
_HIGHEST_MOMENT = 6


class SpectrumVerbs:
    """What a kernel's eigenvalues say."""

    engine: Engine

    def eigenpairs(
        self,
        k: int = 10,
        method: PairMethod = "auto",
        *,
        rtol: float = 1e-4,
        max_products: int | None = None,
        seed: int = 0,
    ) -> Eigenpairs:
        """The k largest eigenvalues λ and their eigenvectors v, Kv = λv.

        Args:
            k: How many, from 1 to n; fewer come back where the rank of K is smaller.
            method: ``"krylov"``: block Krylov iteration (arXiv 1504.05477), k + 2 NTK products a step,
                of JᵀJ where p < n. ``"exact"``: the dense kernel. ``"auto"``: dense where that costs less.
            rtol: How far every value may be off, relative to itself.
            max_products: NTK products at most; 10 n if not given.
            seed: Of the random columns that it starts from.

        Returns:
            Values, vectors of shape (n, k), their residuals ‖Kv - λv‖, and what each value may be off by.

        Raises:
            ValueError: If there are not so many, or for an unknown method.

        >>> import torch
        >>> from ntkscope import NTK
        >>> ntk = NTK(torch.nn.Linear(2, 1, bias=False), torch.diag(torch.tensor([3.0, 2.0])))
        >>> ntk.eigenpairs(2).values.round(4).tolist()
        [9.0, 4.0]
        """
        return ways.eigenpairs(self, k, method=method, rtol=rtol, max_products=max_products, seed=seed)

    def operator_norm(
        self,
        method: PairMethod = "auto",
        *,
        rtol: float = 1e-4,
        max_products: int | None = None,
        seed: int = 0,
    ) -> Estimate:
        """‖K‖₂, the largest eigenvalue; 2/‖K‖₂ bounds the step of gradient descent on a squared error.

        Args and errors as in :meth:`eigenpairs`.

        Returns:
            The estimate. In place of a standard error it has a bound of the error, from the residual.
        """
        return ways.operator_norm(self, method=method, rtol=rtol, max_products=max_products, seed=seed)

    def stable_rank(
        self,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """‖K‖²_F / ‖K‖²₂: between 1 and the rank of K, and hardly moved by small eigenvalues.

        Args:
            method: Of the Frobenius norm, as in :meth:`~ntkscope.NTK.frobenius_norm`; with ``"exact"``
                the largest eigenvalue is that of the dense kernel.
            products: NTK products for the Frobenius norm, in place of a tolerance.
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword, as in :meth:`~ntkscope.NTK.trace`.
        """
        chosen = options_of(options, products, seed, limits)
        frobenius = measure.single("frobenius_norm", [self], method, chosen)
        pairs: PairMethod = "exact" if method == "exact" else "auto"
        largest = self.operator_norm(pairs, rtol=1e-6, seed=chosen.seed)
        if not largest.value > 0:
            note = "the stable rank of a zero kernel is not defined"
            return Estimate(float("nan"), None, frobenius.method, "stable_rank", note=note)
        parts = [Summary(e.value, e.stderr, e.degrees_of_freedom) for e in (frobenius, largest)]
        found = combine_independent(parts, [2, -2])
        return Estimate(
            max(found.value, 1.0),
            found.stderr,
            frobenius.method,
            "stable_rank",
            degrees_of_freedom=found.degrees_of_freedom,
            cost=frobenius.cost + largest.cost,
            seed=None if found.stderr == 0 else chosen.seed,
            converged=frobenius.converged,
            epsilon=frobenius.epsilon,
        )

    def spectrum(
        self,
        method: SpectrumMethod = "auto",
        products: int = 400,
        seed: int = 0,
        *,
        steps: int | None = None,
    ) -> Spectrum:
        """The density of K's eigenvalues, from which every sum over them follows.

        Args:
            method: ``"lanczos"``: the ten largest eigenvalues one by one, and the others as random probes
                orthogonal to them see them (stochastic Lanczos quadrature), of JᵀJ where p < n.
                ``"exact"``: all eigenvalues of the dense kernel. ``"auto"``: exact where that costs no
                more than ``products``.
            products: NTK products to spend.
            seed: Of the probes.
            steps: Products of every probe; a tenth of them all, 40 at most, if not given. More of them
                resolve more, and with fewer there are more probes.

        Raises:
            ValueError: For an unknown method, or too few products.

        >>> import torch
        >>> from ntkscope import NTK
        >>> spectrum = NTK(torch.nn.Linear(2, 1, bias=False), torch.eye(2)).spectrum()
        >>> spectrum.eigenvalues.tolist(), round(spectrum.log_det(1.0).value, 4)
        ([1.0, 1.0], 1.3863)
        """
        return ways.spectrum(self, method=method, products=products, seed=seed, steps=steps)

    def log_det(
        self,
        shift: float,
        method: SpectrumMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        steps: int | None = None,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """Log det(K + λI), as in the evidence of a Gaussian process.

        Args:
            shift: λ > 0.
            method: As in :meth:`spectrum`.
            products: NTK products to spend, in place of a tolerance.
            seed: Of the probes; 0 if not given.
            steps: As in :meth:`spectrum`; a small λ needs many.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword, as in :meth:`~ntkscope.NTK.trace`.

        Raises:
            ValueError: If λ is not positive, and as :meth:`spectrum`.
        """
        chosen = options_of(options, products, seed, limits)
        if not shift > 0:
            raise ValueError(f"the shift λ of log det(K + λI) must be positive, found {shift}; K is singular")
        return ways.over_spectrum(
            self,
            lambda spectrum: spectrum.log_det(shift),
            "log_det",
            method=method,
            options=chosen,
            steps=steps,
        )

    def entropy(
        self,
        method: SpectrumMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """Von Neumann's entropy -Σᵢ pᵢ log pᵢ with pᵢ = λᵢ/tr K, in nats.

        Its exponential is a rank between 1 and that of K, which small eigenvalues move more than they
        do :meth:`~ntkscope.NTK.effective_rank`. Args and errors as in :meth:`log_det`.
        """
        chosen = options_of(options, products, seed, limits)
        return ways.over_spectrum(
            self, lambda spectrum: spectrum.entropy(), "entropy", method=method, options=chosen
        )

    def moments(
        self,
        highest: int = _HIGHEST_MOMENT,
        method: SpectrumMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> list[Estimate]:
        """Tr K, tr K², ..., tr K^j, from shared products.

        The largest eigenvalues, of which high powers are made, are found one by one, and the others'
        powers by Hutchinson's estimator, all from the same four products a probe. Args and errors as in
        :meth:`log_det`.

        Args:
            highest: j, from 1 to 6.
            method: As in :meth:`spectrum`.
            products: NTK products to spend, in place of a tolerance.
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword; a tolerance is met when every moment meets it.

        Raises:
            ValueError: If j is out of range.
        """
        if not 1 <= highest <= _HIGHEST_MOMENT:
            raise ValueError(
                f"moments go from 1 to {_HIGHEST_MOMENT}, found {highest}; use spectrum().moment(j)"
            )
        chosen = options_of(options, products, seed, limits)
        powers = range(1, highest + 1)
        # m steps are exact for powers up to 2m - 1.
        return ways.over_spectrum(
            self,
            lambda spectrum: [spectrum.moment(power) for power in powers],
            "moments",
            method=method,
            options=chosen,
            steps=highest // 2 + 1,
        )
