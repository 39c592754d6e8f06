"""Kernels between two states, and regression with them: fit on x₁, predict x₂."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Unpack

from ntkscope.engines.base import Engine
from ntkscope.results import Cost, Estimate
from ntkscope.settings import Limits, Options, options_of
from ntkscope.verbs.products import ChainMethod
from ntkscope.verbs.targets import InverseMethod
from ntkscope.ways import cross as ways
from ntkscope.ways.dense import on_host
from ntkscope.ways.targets import vector_of

__all__ = ["CrossKernel", "CrossVerbs", "KernelRegression"]


class CrossKernel:
    """K₁₂ = J₁J₂ᵀ of two states of one θ: how training on the second moves the first.

    It has shape (n₁, n₂) and is no kernel of its own: neither symmetric nor positive, also where both
    states have one size. Made by :meth:`ntkscope.NTK.cross`.

    Args:
        left: Engine of J₁.
        right: Engine of J₂.

    Raises:
        ValueError: If their parameters differ in shape, or their dtypes or devices differ.
    """

    def __init__(self, left: Engine, right: Engine) -> None:
        ways.check_pair(left, right)
        self._left, self._right = left, right

    @property
    def shape(self) -> tuple[int, int]:
        """(n₁, n₂)."""
        return (self._left.shape[0], self._right.shape[0])

    @property
    def T(self) -> CrossKernel:
        """K₂₁ = J₂J₁ᵀ."""
        return CrossKernel(self._right, self._left)

    def matvec(self, v: Any) -> Any:
        """J₁(J₂ᵀv): shape (n₂,) or (n₂, k), to (n₁,) or (n₁, k); a VJP and a JVP a column.

        Takes torch or NumPy and returns the same kind; ``kernel.T.matvec`` is the other way.

        Raises:
            ValueError: If the first axis of ``v`` is not n₂.
        """
        with ways.sessions(self._left, self._right):
            return self._left.map() @ (self._right.map().T @ v)

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v)

    def to_dense(self) -> Any:
        """K₁₂ itself, shape (n₁, n₂), float64 NumPy, by n₁ + n₂ VJPs where J₂ fits the budget."""
        return self.block(range(self.shape[0]), range(self.shape[1]))

    def block(self, rows: range, columns: range) -> Any:
        """Entries of K₁₂ for ranges of the flattened states, float64 NumPy.

        Args:
            rows: A range within n₁, such as ``range(10)`` for the first sample of ten outputs.
            columns: A range within n₂.

        Raises:
            ValueError: If they are no ranges of step 1 within the states.
        """
        for places, size in ((rows, self.shape[0]), (columns, self.shape[1])):
            if places.step != 1 or not 0 <= places.start < places.stop <= size:
                raise ValueError(
                    f"expected a range of step 1 within {size:,}, found {places}; use one such as range(0, 1)"
                )
        with ways.sessions(self._left, self._right):
            return ways.cross_block(self._left, self._right, rows, columns)

    def frobenius_norm(
        self,
        method: ChainMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """‖K₁₂‖_F, from tr(K₁₂K₂₁).

        Args:
            method: ``"hutch++"``: two products a probe. ``"exact"``: the dense one. ``"auto"``: exact where
                that costs no more.
            products: Products with K₁₂ or K₂₁ to spend, in place of a tolerance.
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword, as in :meth:`ntkscope.NTK.trace`.

        Raises:
            ValueError: For an unknown method or too few products.
        """
        chosen = options_of(options, products, seed, limits)
        return ways.cross_norm(self._left, self._right, method, chosen)

    def __repr__(self) -> str:
        return f"CrossKernel(n₁={self.shape[0]:,}, n₂={self.shape[1]:,}, p={self._left.shape[1]:,})"


@dataclass(frozen=True, eq=False)
class KernelRegression:
    """Kernel ridge regression with an NTK: where training the linearised model to the end would lead.

    f(x) = h(x) + K(x, x₁) α with (K₁₁ + λI)α = y - h(x₁). Made by :meth:`ntkscope.NTK.regression`.

    Attributes:
        alpha: Shape (n,), float64 NumPy.
        residual: ‖(K + λI)α - (y - h)‖ / ‖y - h‖, by a product of its own.
        method: ``"exact"`` or ``"cg"``.
        converged: Whether the residual meets the tolerance.
        cost: What the fit has spent.
    """

    engine: Engine = field(repr=False)
    alpha: Any = field(repr=False)
    residual: float
    method: str
    converged: bool
    cost: Cost
    from_state: bool

    def predict(self, other: Any) -> Any:
        """F of other inputs, of their state's shape, in the model's framework; a VJP and a JVP.

        Args:
            other: Inputs as the model takes them, or an NTK of the same θ on them.

        Raises:
            ValueError: If an NTK's parameters have other shapes.
        """
        engine = _engine_of(self.engine, other)
        ways.check_pair(engine, self.engine)
        with ways.sessions(engine, self.engine):
            moved = engine.map() @ (self.engine.map().T @ self.alpha)
        start = on_host(engine.state).reshape(-1) if self.from_state else 0.0
        return engine.as_state(on_host(moved) + start)


class CrossVerbs:
    """A kernel's relations to other inputs."""

    engine: Engine

    def cross(self, other: Any) -> CrossKernel:
        """K₁₂ = J₁J₂ᵀ between this state and another one of the same parameters.

        Args:
            other: Inputs as the model takes them, which are run at this kernel's parameters; or an NTK,
                also of another model whose parameters have the same shapes, such as a checkpoint.

        Raises:
            ValueError: If the parameters have other shapes, and as for a new NTK.

        >>> import torch
        >>> from ntkscope import NTK
        >>> ntk = NTK(torch.nn.Linear(2, 1, bias=False), torch.eye(2))
        >>> ntk.cross(torch.tensor([[3.0, 4.0]])).to_dense().tolist()
        [[3.0], [4.0]]
        """
        return CrossKernel(self.engine, _engine_of(self.engine, other))

    def regression(
        self,
        y: Any,
        shift: float,
        method: InverseMethod = "auto",
        *,
        from_state: bool = True,
        rtol: float = 1e-6,
        max_products: int | None = None,
    ) -> KernelRegression:
        """Fits targets by kernel ridge regression, to predict other inputs.

        Args:
            y: Targets of the state's shape or flattened; one-hot for classes.
            shift: λ > 0.
            method: ``"exact"``: the dense kernel's Cholesky factor. ``"cg"``: SciPy's conjugate gradients,
                an NTK product a step. ``"auto"``: dense up to n = 1,024.
            from_state: Whether what is fitted is what the state lacks, as training from here would; else
                the targets themselves.
            rtol: Of the residual, for conjugate gradients.
            max_products: NTK products at most; 10 n if not given.

        Raises:
            ValueError: If λ is not positive, y has another shape, or for an unknown method.

        >>> import torch
        >>> from ntkscope import NTK
        >>> ntk = NTK(torch.nn.Linear(2, 1, bias=False), torch.eye(2))
        >>> fit = ntk.regression(torch.tensor([[1.0], [2.0]]), 1e-6)
        >>> round(fit.predict(torch.tensor([[1.0, 1.0]])).item(), 3)
        3.0
        """
        target = vector_of(self.engine, y)
        if from_state:
            target = target - on_host(self.engine.state).reshape(-1)
        found = ways.solve(self.engine, target, shift, method, rtol, max_products)
        return KernelRegression(
            self.engine, found.alpha, found.residual, found.method, found.converged, found.cost, from_state
        )


def _engine_of(engine: Engine, other: Any) -> Engine:
    found: Engine | None = getattr(other, "engine", None)
    return engine.on(other) if found is None else found
