"""NTK: the empirical neural tangent kernel of one model on one batch of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ntkscope import measure as routes
from ntkscope.engines.torch import Jacobian, StateFunction
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.maps import ForwardMap, KernelMap, ReverseMap
from ntkscope.engines.torch.memory import DEFAULT_BUDGET
from ntkscope.engines.torch.samples.axes import BatchDim
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.tangents import SampleTangents
from ntkscope.engines.torch.samples.tiles import SampleRows, WholeRows, dense_kernel
from ntkscope.results import Estimate, Measurement, Measurements
from ntkscope.ways.plan import Plan

__all__ = ["NTK", "measure_all"]


class NTK:
    """K = JJᵀ, with J = ∂state/∂parameters of a model at its present parameters.

    K says how the state moves under gradient descent. It is measured, never formed,
    unless forming it (in tiles) is the cheapest way. The kernel is a snapshot: training
    the model afterwards does not change it, and nothing here changes the model, its
    mode, its gradients or the global random state.

    Args:
        model: Any ``torch.nn.Module``. Parameters with ``requires_grad=False`` are not in θ;
            a tied parameter counts once.
        inputs: What the model is called with: a tensor, a tuple (positional) or a mapping (by name).
        outputs: Picks the state from what the model returns, such as ``lambda y: y[0]``.
        layer: Name of a submodule whose output is the state, such as ``"encoder.1"``.
        batch_dim: The axis of the inputs that holds the samples (or a tuple or dict of axes, one for
            each input, ``None`` for shared ones). ``None``: the samples are coupled, treat the batch
            as a whole. Coupled samples are detected anyway.
        memory_budget: Bytes that one step of work may take besides the model.
        chunk_size: Probes in a chunk; chosen from the budget if ``None``.

    Raises:
        TypeError: If the model is no module, or the state is not one real floating tensor.
        ValueError: If the model is random, has no trainable parameter, or its state is empty or
            not finite.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> ntk = NTK(model, torch.ones(5, 3))
    >>> ntk.n, ntk.n_params
    (10, 8)
    >>> ntk.trace(method="exact").value  # (‖x‖² + 1) for each of 10 outputs
    40.0
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor | Sequence[Any] | Mapping[str, Any],
        *,
        outputs: Callable[[Any], Tensor] | None = None,
        layer: str | None = None,
        batch_dim: BatchDim | None = 0,
        memory_budget: int = DEFAULT_BUDGET,
        chunk_size: int | None = None,
    ) -> None:
        for name, value in (("memory_budget", memory_budget), ("chunk_size", chunk_size)):
            if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
                raise TypeError(f"{name} must be a number, found {value!r}; pass bytes, such as {1 << 28:,}")
        if memory_budget <= 0 or (chunk_size is not None and chunk_size < 1):
            raise ValueError(
                f"memory_budget and chunk_size must be positive, found {memory_budget} and {chunk_size}; "
                "leave them out to have them chosen"
            )
        self._function = StateFunction(model, inputs, outputs, layer)
        self._jacobian = Jacobian(self._function, memory_budget, chunk_size)
        self._options: dict[str, Any] = {"outputs": outputs, "layer": layer, "chunk_size": chunk_size}
        self._batch_dim = batch_dim
        self._samples: tuple[SampleJacobian | None, str] | None = None
        self._tangents: SampleTangents | None = None
        self.memory_budget = memory_budget

    def at(self, model: nn.Module) -> NTK:
        """The kernel of the same state at another moment of the model's training.

        The inputs and all options are those of this kernel, and what was found out about the model's
        structure is kept instead of being traced anew, if it still holds: a few forward passes say so.

        Args:
            model: The same module with other values of its parameters (or a copy of it).

        Raises:
            TypeError: As for a new NTK, and so are the other errors.
            ValueError: If the state has another shape.

        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> first = NTK(model, torch.ones(5, 3))
        >>> with torch.no_grad():
        ...     _ = model.weight.mul_(3)  # your training
        >>> round(first.at(model).alignment(first).value, 6)  # the kernel of a linear model never moves
        1.0
        """
        twin = NTK(
            model,
            self._function.inputs,
            batch_dim=self._batch_dim,
            memory_budget=self.memory_budget,
            **self._options,
        )
        if twin.output_shape != self.output_shape:
            raise ValueError(
                f"the model's state has shape {twin.output_shape} now, expected {self.output_shape}; "
                "make a new NTK of it"
            )
        jacobian = self._samples[0] if self._samples else None
        if jacobian is not None:
            try:
                twin._samples = (jacobian.at(twin._function), "")
            except StructureError:
                # Another way through the model, or other constants: it is traced when it is needed.
                twin._samples = None
        return twin

    # What it is.

    @property
    def n(self) -> int:
        """Size of the state; K has shape (n, n)."""
        return self._jacobian.shape[0]

    @property
    def n_params(self) -> int:
        """Number of trainable parameters p; J has shape (n, p)."""
        return self._jacobian.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return (self.n, self.n)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the state; vectors of n numbers are it, flattened."""
        return self._function.output_shape

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype, in which the products run."""
        return self._function.dtype

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self._function.device

    def __repr__(self) -> str:
        state = "×".join(map(str, self.output_shape)) or "scalar"
        return f"NTK(state {state}, n={self.n:,}, p={self.n_params:,}, {self.dtype}, {self.device})"

    # Products.

    def matvec(self, v: Any) -> Any:
        """Kv: shape (n,) or (n, k), to the same shape; one NTK product (a VJP and a JVP) a column.

        Takes torch or NumPy and returns the same kind.

        Raises:
            ValueError: If the first axis of ``v`` is not n.
        """
        return self._apply(v, self.n, "n", self._jacobian.ntk)

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v)

    def vjp(self, z: Any) -> Any:
        """Jᵀz: shape (n,) or (n, k), to (p,) or (p, k); one reverse product a column.

        The parameters are flattened and put one after the other as ``named_parameters`` lists them.
        """
        return self._apply(z, self.n, "n", self._jacobian.vjp)

    def jvp(self, u: Any) -> Any:
        """Ju: shape (p,) or (p, k), to (n,) or (n, k); one forward product a column."""
        return self._apply(u, self.n_params, "p", self._jacobian.jvp)

    def _apply(self, v: Any, size: int, name: str, product: Callable[[Tensor], Tensor]) -> Any:
        from_numpy = not isinstance(v, Tensor)
        block = torch.as_tensor(np.asarray(v)) if from_numpy else v
        if block.dim() not in (1, 2) or block.shape[0] != size:
            raise ValueError(
                f"expected a vector of shape ({size},) or a block of columns ({size}, k), "
                f"since {name}={size}; found shape {tuple(block.shape)}"
            )
        rows = block.reshape(size, -1).T.to(self.device, self.dtype)
        result = product(rows.contiguous()).detach().T
        result = result[:, 0] if block.dim() == 1 else result
        if not from_numpy:
            return result
        wide = result if result.dtype in (torch.float32, torch.float64) else result.float()
        return wide.cpu().numpy()

    def to_dense(self) -> Tensor:
        """K itself, shape (n, n), exactly, in tiles; n² numbers of memory."""
        jacobian, _ = self._structure()
        source = WholeRows(self._jacobian) if jacobian is None else SampleRows(jacobian)
        return dense_kernel(source, self.n, self.memory_budget)

    def to_scipy(self) -> Any:
        """K as a ``scipy.sparse.linalg.LinearOperator`` (SciPy must be installed).

        Raises:
            ImportError: If SciPy is missing.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise ImportError("to_scipy() needs SciPy; install it with: pip install scipy") from error
        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        product = self.matvec
        # SciPy chooses the class by its arguments, in __new__, which type checkers do not see.
        make: Any = LinearOperator
        return make(self.shape, matvec=product, matmat=product, rmatvec=product, dtype=dtype)

    # Metrics.

    def trace(
        self,
        method: str = "auto",
        products: int | None = None,
        seed: int = 0,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        max_products: int | None = None,
        seconds: float | None = None,
        progress: bool | Callable[..., None] = False,
    ) -> Estimate:
        """Tr K = ‖J‖²_F.

        Args:
            method: ``"exact"``: one-hot probes, s a sample where samples are independent (s outputs a
                sample), else n VJPs or p JVPs. ``"per-sample"``: random signs for every sample on its
                own, one batched VJP a probe. ``"per-sample-forward"``: its twin in forward mode, with random
                parameter directions for every sample. ``"hutch++"``, ``"rhutch"`` (reverse mode alone),
                ``"fhutch"`` (forward mode alone): arXiv 2511.10796. ``"auto"``: the cheapest way to the
                tolerance, see :meth:`explain`.
            products: Products to spend (NTK products; VJPs or JVPs for the one-sided methods).
            seed: Of the probes.
            rtol: Relative tolerance; 0.01 where neither this, ``atol`` nor ``products`` is given.
            atol: Absolute tolerance.
            max_products: Most products that may be spent for a tolerance.
            seconds: Most seconds that may be spent.
            progress: Show a bar, or a function of (estimate, spent, budget) to call.

        Returns:
            The estimate with its standard error and cost.

        Raises:
            ValueError: For an unknown method, one that does not apply to this model, or a budget
                below the method's minimum.
        """
        growth = _growth(rtol, atol, max_products, seconds)
        return routes.single(self, "trace", [], method, products, seed, progress, growth)

    def frobenius_norm(
        self,
        method: str = "auto",
        products: int | None = None,
        seed: int = 0,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        max_products: int | None = None,
        seconds: float | None = None,
        progress: bool | Callable[..., None] = False,
    ) -> Estimate:
        """‖K‖_F = √tr(K²).

        Args and errors as in :meth:`trace`. ``"exact"`` goes by tiles of K from layer factors, by
        rows of J, or by JᵀJ, whichever is cheapest; ``"hutch++"`` runs Hutch++ on K², two NTK
        products a probe, as arXiv 2511.10796 does.
        """
        growth = _growth(rtol, atol, max_products, seconds)
        return routes.single(self, "frobenius_norm", [], method, products, seed, progress, growth)

    def effective_rank(
        self,
        method: str = "auto",
        products: int | None = None,
        seed: int = 0,
        *,
        trace_method: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        max_products: int | None = None,
        seconds: float | None = None,
        progress: bool | Callable[..., None] = False,
    ) -> Estimate:
        """(tr K)² / ‖K‖²_F: between 1 and the rank of K; how many directions of state share the motion.

        Args and errors as in :meth:`frobenius_norm`, and ``trace_method``: where the trace comes from,
        ``"per-sample"``, ``"per-sample-forward"``, ``"exact"``, or ``None`` for the same products as the
        norm's. ``method="auto"`` takes ``"per-sample"`` where samples are independent.
        """
        growth = _growth(rtol, atol, max_products, seconds)
        return routes.single(
            self, "effective_rank", [], method, products, seed, progress, growth, trace_method
        )

    def alignment(
        self,
        other: Any,
        method: str = "auto",
        products: int | None = None,
        seed: int = 0,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        max_products: int | None = None,
        seconds: float | None = None,
        progress: bool | Callable[..., None] = False,
    ) -> Estimate:
        """cos(K, K′) = tr(KK′) / (‖K‖_F ‖K′‖_F) with another kernel on the same state.

        Args:
            other: An NTK on a state of the same shape, or a symmetric matrix of shape (n, n), such as
                the kernel yyᵀ of the targets.
            method: As in :meth:`frobenius_norm`.
            products: NTK products to spend, with both kernels together.
            seed: Of the probes.
            rtol: Relative tolerance.
            atol: Absolute tolerance.
            max_products: Most products that may be spent for a tolerance.
            seconds: Most seconds that may be spent.
            progress: Show a bar, or a function to call.

        Raises:
            ValueError: If the kernels do not act on states of one shape.
        """
        growth = _growth(rtol, atol, max_products, seconds)
        others = [self._other(other)]
        return routes.single(self, "alignment", others, method, products, seed, progress, growth)

    def measure(
        self,
        others: Sequence[Any] = (),
        method: str = "auto",
        products: int | None = None,
        seed: int = 0,
        *,
        trace_method: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        max_products: int | None = None,
        seconds: float | None = None,
        progress: bool | Callable[..., None] = False,
    ) -> Measurement:
        """Trace, norm, effective rank, and the alignment with each of ``others``, from shared work.

        Args and errors as in :meth:`alignment`, and ``trace_method`` as in :meth:`effective_rank`.
        ``method="sketch"`` goes by products alone, each kernel's counted once. A tolerance is met
        when every metric meets it.

        >>> import torch
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> round(NTK(model, torch.eye(3)).measure().effective_rank.value, 4)
        3.0
        """
        growth = _growth(rtol, atol, max_products, seconds)
        kernels = [self._other(other) for other in others]
        return routes.measure(self, kernels, method, products, seed, progress, growth, trace_method)

    # How.

    def plan(self, metric: str = "trace", others: Sequence[NTK] = (), rtol: float = 0.01) -> Plan:
        """Every way to a metric with its predicted cost, and the one that ``method="auto"`` takes.

        Args:
            metric: ``"trace"``, ``"frobenius_norm"``, ``"effective_rank"``, ``"alignment"`` or ``"measure"``.
            others: The other kernels.
            rtol: The tolerance.

        Raises:
            ValueError: For an unknown metric.
        """
        if metric not in routes.METHODS:
            raise ValueError(
                f"unknown metric {metric!r}; choose one of " + ", ".join(map(repr, routes.METHODS))
            )
        return routes.make_plan(self, metric, [self._other(other) for other in others], rtol)

    def explain(self, metric: str = "trace", others: Sequence[NTK] = (), rtol: float = 0.01) -> None:
        """Prints :meth:`plan`, and what is known of the model's structure."""
        jacobian, reason = self._structure()
        if jacobian is None:
            print(f"The samples are not treated on their own: {reason}.")
        else:
            print(jacobian.describe())
        print(self.plan(metric, others, rtol))

    # The two halves.

    def _structure(self) -> tuple[SampleJacobian | None, str]:
        """The per-sample Jacobian, or ``None`` and the reason why there is none."""
        if self._samples is None:
            self._samples = self._find_structure()
        return self._samples

    def _find_structure(self) -> tuple[SampleJacobian | None, str]:
        if self._batch_dim is None:
            return None, "batch_dim=None says that they are coupled"
        try:
            return SampleJacobian(self._function, self._batch_dim, self.memory_budget), ""
        except StructureError as error:
            return None, str(error)

    def _sample_jacobian(self) -> SampleJacobian:
        jacobian, reason = self._structure()
        if jacobian is None:
            raise ValueError(
                f"per-sample methods do not apply: {reason}; use method='auto' or 'hutch++', "
                "or name the samples' axis by batch_dim="
            )
        return jacobian

    def _sample_tangents(self) -> SampleTangents:
        if self._tangents is None:
            try:
                self._tangents = SampleTangents(self._sample_jacobian(), self.memory_budget)
            except StructureError as error:
                raise ValueError(
                    f"method 'per-sample-forward' does not apply: {error}; use 'per-sample'"
                ) from error
        return self._tangents

    def _sample_products(self) -> tuple[float, float]:
        """VJPs and JVPs of the batch that were spent sample by sample."""
        jacobian = self._samples[0] if self._samples else None
        return (jacobian.vjps, jacobian.jvps) if jacobian else (0.0, 0.0)

    def _as_map(self) -> KernelMap:
        return KernelMap(self._jacobian)

    def _reverse_map(self) -> ReverseMap:
        return ReverseMap(self._jacobian)

    def _forward_map(self) -> ForwardMap:
        return ForwardMap(self._jacobian)

    def _other(self, other: Any) -> Any:
        """Another kernel, checked against this one."""
        shape = tuple(getattr(other, "shape", ()))
        if shape != self.shape:
            raise ValueError(
                f"the other kernel has shape {shape}, expected {self.shape}; kernels are compared on the "
                "same state: use the same inputs and outputs for both"
            )
        if isinstance(other, NTK):
            if other.output_shape != self.output_shape:
                raise ValueError(
                    f"the other kernel's state has shape {other.output_shape}, expected {self.output_shape}; "
                    "kernels are compared on the same state: use the same inputs and outputs for both"
                )
            if other.dtype != self.dtype or other.device != self.device:
                raise ValueError(
                    f"the kernels are {self.dtype} on {self.device} and {other.dtype} on {other.device}; "
                    "bring both models to one dtype and device"
                )
            return other
        if isinstance(other, (Tensor, np.ndarray)):
            matrix = torch.as_tensor(other).to(self.device, self.dtype)
            if not bool(torch.isfinite(matrix).all()):
                raise ValueError(
                    "the other kernel has entries that are not finite; look for nan and inf in it"
                )
            if not torch.allclose(matrix, matrix.mT, rtol=1e-3, atol=1e-3 * float(matrix.abs().max())):
                raise ValueError(
                    "the other kernel is not symmetric, as a kernel is; pass (A + A.T) / 2 if it nearly is"
                )
            return matrix
        return other


def measure_all(
    kernels: Sequence[NTK],
    method: str = "auto",
    products: int | None = None,
    seed: int = 0,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    max_products: int | None = None,
    seconds: float | None = None,
    progress: bool | Callable[..., None] = False,
) -> Measurements:
    """Trace, norm and effective rank of several kernels, and the alignment of every pair.

    Every kernel pays for its work once, however many pairs it is in: the checkpoints of one
    training run give their whole alignment matrix.

    Args:
        kernels: NTKs on states of one shape.
        method: As in :meth:`NTK.measure`; separate Hutch++ runs are not among them.
        products: NTK products to spend, all kernels together.
        seed: Of the probes.
        rtol: Relative tolerance, met when every metric of every kernel meets it.
        atol: Absolute tolerance.
        max_products: Most products that may be spent for a tolerance.
        seconds: Most seconds that may be spent.
        progress: Show a bar, or a function to call.

    Returns:
        One measurement a kernel, with :meth:`~ntkscope.Measurements.alignment_matrix`.

    Raises:
        ValueError: As :meth:`NTK.alignment`, and for no kernels.

    >>> import torch
    >>> checkpoints = [NTK(torch.nn.Linear(3, 1, bias=False), torch.eye(3)) for _ in range(2)]
    >>> measure_all(checkpoints).alignment_matrix().round(6).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    if not kernels:
        raise ValueError("measure_all needs at least one kernel, found none; pass a list of NTKs")
    checked = [kernels[0]._other(kernel) for kernel in kernels]
    growth = _growth(rtol, atol, max_products, seconds)
    return routes.measure_all(checked, method, products, seed, progress, growth)


def _growth(
    rtol: float | None, atol: float | None, max_products: int | None, seconds: float | None
) -> dict[str, Any]:
    """The limits that were given."""
    given = {"rtol": rtol, "atol": atol, "max_products": max_products, "seconds": seconds}
    return {name: value for name, value in given.items() if value is not None}
