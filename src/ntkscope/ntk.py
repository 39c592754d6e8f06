"""NTK: the empirical neural tangent kernel of one model on one batch of inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack

import numpy as np

from ntkscope import measure
from ntkscope.engines.base import Engine, LinearMap, Refusal, Samples
from ntkscope.engines.pick import make_engine
from ntkscope.fingerprints import Fingerprint
from ntkscope.fingerprints.take import take_fingerprint
from ntkscope.metrics import METRICS, STANDARD
from ntkscope.parts.partial import partial_trace
from ntkscope.results import Cost, Estimate, Measurement, Measurements, PartialTrace, named_kernels
from ntkscope.settings import (
    DEFAULT_BUDGET,
    Limits,
    Method,
    Options,
    PartialMethod,
    TraceMethod,
    TraceSource,
    check_sizes,
    options_of,
)
from ntkscope.variants.centered import centered_alignment
from ntkscope.variants.population import population_effective_rank
from ntkscope.ways.plan import Plan

__all__ = ["NTK", "measure_all"]

#: An axis for every input, or a tuple or dict of axes (``None``: shared by all samples).
BatchDim: TypeAlias = "int | tuple[int | None, ...] | Mapping[str, int | None]"

#: Engines by name.
EngineName: TypeAlias = Literal["auto", "hooks"]


_NO_COPY = (
    "an NTK cannot be copied or pickled, since it runs the user's own module; make a new one of the "
    "model's copy, or keep what was measured (to_dict())"
)


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
        engine: ``"hooks"``: the model is not traced, its own forward and ``backward()`` run with hooks on
            its layers, one pass for all probes. ``"auto"``: that where parameters are sharded
            (``fully_shard``, DTensor), of which every process brings its own samples; else by tracing.

    Attributes:
        engine: What knows the model's framework; see :class:`ntkscope.engines.base.Engine`.

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

    engine: Engine

    def __init__(
        self,
        model: Any,
        inputs: Any,
        *,
        outputs: Callable[[Any], Any] | None = None,
        layer: str | None = None,
        batch_dim: BatchDim | None = 0,
        memory_budget: int = DEFAULT_BUDGET,
        chunk_size: int | None = None,
        engine: EngineName = "auto",
    ) -> None:
        check_sizes(memory_budget, chunk_size)
        if engine not in ("auto", "hooks"):
            raise ValueError(f"unknown engine {engine!r}; choose one of 'auto', 'hooks'")
        self.engine = make_engine(
            model,
            inputs,
            outputs=outputs,
            layer=layer,
            batch_dim=batch_dim,
            memory_budget=memory_budget,
            chunk_size=chunk_size,
            **({} if engine == "auto" else {"engine": engine}),
        )

    def at(self, model: Any) -> NTK:
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
        twin = NTK.__new__(NTK)
        twin.engine = self.engine.at(model)
        return twin

    def __deepcopy__(self, memo: Any) -> NTK:
        raise TypeError(_NO_COPY)

    def __reduce__(self) -> Any:
        raise TypeError(_NO_COPY)

    # What it is.

    @property
    def n(self) -> int:
        """Size of the state; K has shape (n, n)."""
        return self.engine.shape[0]

    @property
    def n_params(self) -> int:
        """Number of trainable parameters p; J has shape (n, p)."""
        return self.engine.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return (self.n, self.n)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the state; vectors of n numbers are it, flattened."""
        return self.engine.output_shape

    @property
    def state(self) -> Any:
        """The watched state itself, detached, of shape :attr:`output_shape`."""
        return self.engine.state

    @property
    def dtype(self) -> Any:
        """The state's dtype, in which the products run."""
        return self.engine.dtype

    @property
    def device(self) -> Any:
        """Where the state lives."""
        return self.engine.device

    @property
    def memory_budget(self) -> int:
        """Bytes that one step of work may take besides the model."""
        return self.engine.budget

    @property
    def cost(self) -> Cost:
        """All products that this kernel has run so far; no seconds."""
        ledger = self.engine.ledger
        return Cost(ledger.products, round(ledger.vjps), round(ledger.jvps))

    def __repr__(self) -> str:
        state = "×".join(map(str, self.output_shape)) or "scalar"
        return f"NTK(state {state}, n={self.n:,}, p={self.n_params:,}, {self.dtype}, {self.device})"

    # Products.

    def jacobian(self) -> LinearMap:
        """J as a linear map of shape (n, p), with ``@`` and ``T``.

        >>> import torch
        >>> J = NTK(torch.nn.Linear(3, 2, bias=False), torch.eye(3)).jacobian()
        >>> J.shape, (J.T @ torch.ones(6)).tolist()
        ((6, 6), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
        """
        return self.engine.map()

    def matvec(self, v: Any) -> Any:
        """Kv: shape (n,) or (n, k), to the same shape; one NTK product (a VJP and a JVP) a column.

        Takes torch or NumPy and returns the same kind.

        Raises:
            ValueError: If the first axis of ``v`` is not n.
        """
        with self.engine.session():
            return self.engine.kernel_map() @ v

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v)

    def vjp(self, z: Any) -> Any:
        """Jᵀz: shape (n,) or (n, k), to (p,) or (p, k); one reverse product a column.

        The parameters are flattened and put one after the other as ``named_parameters`` lists them.
        """
        with self.engine.session():
            return self.engine.map().T @ z

    def jvp(self, u: Any) -> Any:
        """Ju: shape (p,) or (p, k), to (n,) or (n, k); one forward product a column."""
        with self.engine.session():
            return self.engine.map() @ u

    def to_dense(self) -> Any:
        """K itself, shape (n, n), exactly, in tiles; n² numbers of memory."""
        with self.engine.session():
            return self.engine.dense()

    def to_scipy(self) -> Any:
        """K as a ``scipy.sparse.linalg.LinearOperator``."""
        from scipy.sparse.linalg import LinearOperator

        dtype = np.float64 if self.engine.map().epsilon < 1e-10 else np.float32
        product = self.matvec
        # SciPy chooses the class by its arguments, in __new__, which type checkers do not see.
        make: Any = LinearOperator
        return make(self.shape, matvec=product, matmat=product, rmatvec=product, dtype=dtype)

    # Metrics.

    def trace(
        self,
        method: TraceMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """Tr K = ‖J‖²_F.

        Args:
            method: ``"exact"``: one-hot probes, s a sample where samples are independent (s outputs a
                sample), else n VJPs or p JVPs. ``"per-sample"``: random probes for every sample on its
                own, one batched VJP a probe. ``"per-sample-forward"``: its twin in forward mode, with random
                parameter directions for every sample. ``"hutch++"``, ``"rhutch"`` (reverse mode alone),
                ``"fhutch"`` (forward mode alone): arXiv 2511.10796. ``"auto"``: the cheapest way to the
                tolerance, see :meth:`explain`.
            products: Products to spend (NTK products; VJPs or JVPs for the one-sided methods).
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword: ``rtol`` (0.01 where neither it, ``atol`` nor ``products``
                is given), ``atol``, ``max_products``, ``seconds``, ``progress``.

        Returns:
            The estimate with its standard error and cost.

        Raises:
            ValueError: For an unknown method, one that does not apply to this model, or a budget
                below the method's minimum.
            TypeError: For an option that there is not, or of the wrong kind.
        """
        return measure.single("trace", [self], method, options_of(options, products, seed, limits))

    def frobenius_norm(
        self,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """‖K‖_F = √tr(K²).

        Args and errors as in :meth:`trace`. ``"exact"`` goes by tiles of K from layer factors, by
        rows of J, or by JᵀJ, whichever is cheapest; ``"hutch++"`` runs Hutch++ on K², two NTK
        products a probe, as arXiv 2511.10796 does.
        """
        chosen = options_of(options, products, seed, limits)
        return measure.single("frobenius_norm", [self], method, chosen)

    def effective_rank(
        self,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        trace_method: TraceSource | None = None,
        population: bool = False,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """(tr K)² / ‖K‖²_F: between 1 and the rank of K; how many directions of state share the motion.

        Args and errors as in :meth:`frobenius_norm`, and ``trace_method``: where the trace comes from,
        ``"per-sample"``, ``"per-sample-forward"``, ``"exact"``, or ``None`` for the same products as the
        norm's. ``method="auto"`` takes ``"per-sample"`` where samples are independent.

        ``population=True``: Σ_{b≠b'} tr K_bb tr K_b'b' / Σ_{b≠b'} ‖K_bb'‖², from different samples
        alone, which does not depend on their number (arXiv 2509.26560); by ``"exact"`` or ``"per-sample"``.
        """
        chosen = options_of(options, products, seed, limits)
        if population:
            if trace_method is not None:
                raise ValueError("population=True has traces of its own; leave trace_method= out")
            return population_effective_rank(self.engine, method, chosen)
        return measure.single("effective_rank", [self], method, chosen, trace_method=trace_method)

    def alignment(
        self,
        other: Any,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        centered: bool = False,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """cos(K, K′) = tr(KK′) / (‖K‖_F ‖K′‖_F) with another kernel on the same state.

        Args:
            other: An NTK on a state of the same shape, or a symmetric matrix of shape (n, n), such as
                the kernel yyᵀ of the targets.
            method: As in :meth:`frobenius_norm`.
            products: NTK products to spend, with both kernels together.
            seed: Of the probes; 0 if not given.
            centered: Whether J_b - mean_b J_b takes the place of J_b, so that the kernels are H K H with
                H = I - 11ᵀ/B over the samples, for each output (CKA, arXiv 1905.00414). ``"exact"`` is by
                dense kernels where they fit the memory budget, ``"per-sample"`` by probes that all
                samples share; all other methods go by products with H K H.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword, as in :meth:`trace`.

        Raises:
            ValueError: If the kernels do not act on states of one shape, or with ``centered=True`` if
                there are no samples that are treated on their own.
        """
        chosen = options_of(options, products, seed, limits)
        if centered:
            return centered_alignment(self.engine, self._other(other), method, chosen)
        return measure.single("alignment", [self, self._other(other)], method, chosen)

    def metric(
        self,
        name: str,
        *others: Any,
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Estimate:
        """Any metric of :data:`ntkscope.metrics.METRICS` by its name.

        Args and errors as in :meth:`alignment`; ``others`` is the other kernel of a metric that takes two.

        >>> import torch
        >>> ntk = NTK(torch.nn.Linear(2, 1, bias=False), torch.eye(2))
        >>> round(ntk.metric("inner_product", ntk, method="exact").value, 6)
        2.0
        """
        chosen = options_of(options, products, seed, limits)
        return measure.single(name, [self, *map(self._other, others)], method, chosen)

    def measure(
        self,
        others: Sequence[Any] | Mapping[str, Any] = (),
        method: Method = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        metrics: Sequence[str] = STANDARD,
        trace_method: TraceSource | None = None,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> Measurement:
        """Trace, norm, effective rank, and the alignment with each of ``others``, from shared work.

        Args and errors as in :meth:`alignment`, ``trace_method`` as in :meth:`effective_rank`, and
        ``metrics``: which of :data:`ntkscope.metrics.METRICS`. The others have names if they come as
        ``{"init": other}``. ``method="sketch"`` goes by products alone, each kernel's counted once. A
        tolerance is met when every metric meets it.

        >>> import torch
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> round(NTK(model, torch.eye(3)).measure().effective_rank.value, 4)
        3.0
        """
        given, names = named_kernels(others)
        kernels = [self, *map(self._other, given)]
        chosen = options_of(options, products, seed, limits)
        wanted = measure.check_metrics(metrics)
        found = measure.measure(kernels, wanted, method, chosen, trace_method=trace_method)
        return dataclasses.replace(found, others=names)

    def fingerprint(
        self, probes: int = 2, seed: int = 0, by: str | None = None, *, centered: bool = False
    ) -> Fingerprint:
        """All of K that its metrics and alignments need, to be kept in place of the parameters.

        Args:
            probes: m ≥ 2, random signs of every sample; errors fall as 1/√m. One batched VJP each.
            seed: Of the probes. Fingerprints that are to be compared have the same probes and seed.
            by: ``"layer"`` keeps the parts of K that each module's own parameters make apart.
            centered: Whether of H K H, J_b - mean_b J_b in the place of J_b (CKA). All samples share their
                probes then, of which there are 4 or more, and all pairs of samples are kept.

        Returns:
            The fingerprint, (1 + c)·B·q·m² numbers for B samples in blocks of q ≤ 16 and c ≤ 16 offsets
            (all pairs of up to 80 samples), a layer each with ``by="layer"``.

        Raises:
            TypeError: If ``probes`` or ``seed`` is no whole number.
            ValueError: If there are fewer than 2 probes, for an unknown ``by``, if the samples are
                coupled, or if their gradients do not fit the memory budget together.

        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> before = NTK(model, torch.eye(3)).fingerprint()
        >>> before.trace().cost.vjps
        2
        """
        return take_fingerprint(self.engine, probes, seed, by, centered)

    # In parts.

    def partial_trace(
        self,
        keep: str | int | Sequence[str | int] = 0,
        names: Sequence[str] | None = None,
        method: PartialMethod = "auto",
        products: int | None = None,
        seed: int | None = None,
        *,
        options: Options | None = None,
        **limits: Unpack[Limits],
    ) -> PartialTrace:
        """K traced over all axes of the state but some: P[a, a′] = Σ_c K[(a, c), (a′, c)].

        Kept samples make the contracted kernel between samples, kept time steps or units that between
        these. P is unbiased, positive semidefinite up to its error, and has the trace of K; no terms with
        c ≠ c′ are in it (those that a contraction of K with ones has).

        Args:
            keep: Names or numbers of the axes to keep, in the order of the matrix.
            names: A name for every axis of the state; if ``None``, ``"batch"`` for that of the samples,
                and ``"axis1"`` and the like for the others.
            method: ``"exact"``: one-hot probes, as many VJPs as one sample has outputs. ``"reverse"``:
                random signs over the traced axes, a VJP for every kept entry of one sample, so one where
                samples alone are kept. ``"forward"``: random parameter directions, one JVP each.
                ``"auto"``: what is predicted to be the cheapest to the tolerance.
            products: VJPs or JVPs to spend.
            seed: Of the probes; 0 if not given.
            options: All of how far to go as one :class:`ntkscope.Options`.
            **limits: Its fields by keyword. A tolerance is met when P as a whole (the root of its summed
                squared errors, relative to ‖P‖), its trace and its effective rank meet it.

        Returns:
            The matrix with its error bars, trace, norm, effective rank and alignment with another one.

        Raises:
            ValueError: For an unknown axis or method, or one that does not apply.
            TypeError: For an axis that is neither a name nor a number.

        >>> import torch
        >>> ntk = NTK(torch.nn.Linear(3, 2), torch.eye(3))
        >>> ntk.partial_trace("batch").values.round(6).tolist()  # 2 (x·x′ + 1)
        [[4.0, 2.0, 2.0], [2.0, 4.0, 2.0], [2.0, 2.0, 4.0]]
        """
        return partial_trace(self.engine, keep, names, method, options_of(options, products, seed, limits))

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
        if metric not in (*METRICS, "measure", "measure_all"):
            known = (*METRICS, "measure", "measure_all")
            raise ValueError(f"unknown metric {metric!r}; choose one of " + ", ".join(map(repr, known)))
        return measure.plan([self, *map(self._other, others)], metric, rtol)

    def explain(self, metric: str = "trace", others: Sequence[NTK] = (), rtol: float = 0.01) -> None:
        """Prints :meth:`plan`, and what is known of the model's structure."""
        samples, reason = self._structure()
        if samples is None:
            print(f"The samples are not treated on their own: {reason}.")
        else:
            print(samples.describe())
        print(self.plan(metric, others, rtol))

    def _structure(self) -> tuple[Samples | None, str]:
        """The samples on their own, or ``None`` and the reason why they are not treated so."""
        with self.engine.session():
            samples = self.engine.samples()
        return (None, samples.reason) if isinstance(samples, Refusal) else (samples, "")

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
            different = self.engine.other_inputs(other.engine)
            if different:
                raise ValueError(
                    f"the kernels are of different inputs ({different}); use the same batch for both "
                    "(estimators.alignment compares kernels whatever they are of)"
                )
            return other
        return self.engine.matrix(other)


def measure_all(
    kernels: Sequence[NTK] | Mapping[str, NTK],
    method: Method = "auto",
    products: int | None = None,
    seed: int | None = None,
    *,
    metrics: Sequence[str] = STANDARD,
    options: Options | None = None,
    **limits: Unpack[Limits],
) -> Measurements:
    """Trace, norm and effective rank of several kernels, and the alignment of every pair.

    Every kernel pays for its work once, however many pairs it is in: the checkpoints of one
    training run give their whole alignment matrix.

    Args:
        kernels: NTKs on states of one shape; by their names, ``{"init": a, "trained": b}``, which tables
            and plots then use.
        method: As in :meth:`NTK.measure`; separate Hutch++ runs are not among them.
        products: NTK products to spend, all kernels together.
        seed: Of the probes; 0 if not given.
        metrics: As in :meth:`NTK.measure`.
        options: All of how far to go as one :class:`Options`.
        **limits: Its fields by keyword; a tolerance is met when every metric of every kernel meets it.

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
    given, names = named_kernels(kernels)
    checked = [given[0]._other(kernel) for kernel in given]
    chosen = options_of(options, products, seed, limits)
    found = measure.measure_all(checked, measure.check_metrics(metrics), method, chosen)
    return found.named(names)
