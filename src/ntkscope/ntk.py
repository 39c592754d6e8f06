"""NTK: the empirical neural tangent kernel of one model on one batch of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack

import numpy as np

from ntkscope import measure
from ntkscope.engines.base import Engine, LinearMap, Refusal, Samples
from ntkscope.engines.pick import make_engine
from ntkscope.metrics import METRICS, STANDARD, check_metrics
from ntkscope.results import (
    Cost,
    Measurements,
    named_kernels,
)
from ntkscope.settings import (
    Limits,
    Method,
    Options,
    check_chunk_size,
    options_of,
    parse_memory,
)
from ntkscope.verbs.cross import CrossVerbs
from ntkscope.verbs.metrics import MetricVerbs
from ntkscope.verbs.others import checked_other
from ntkscope.verbs.parts import PartVerbs
from ntkscope.verbs.spectrum import SpectrumVerbs
from ntkscope.verbs.targets import TargetVerbs
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


class NTK(MetricVerbs, PartVerbs, SpectrumVerbs, TargetVerbs, CrossVerbs):
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
        memory: What one step of work may take besides the model: bytes, or a text such as ``"4GiB"``. If
            not given, 1 GiB, or a quarter of what is free where that is less. Chunks follow from it, and
            where memory runs out all the same they are halved.
        chunk_size: Probes in a chunk; chosen from the budget if ``None``.
        loss: ``"cross_entropy"``, ``"mse"``, ``"binary_cross_entropy"`` (of logits), or a function of the
            whole state to one number, convex in it. With RRᵀ = ∂²L/∂h², the state is Rᵀh, R fixed at the
            parameters at hand, and K = RᵀJJᵀR has the eigenvalues of the generalised Gauss-Newton matrix
            JᵀRRᵀJ, so every metric is that matrix's (for cross entropy also Fisher's). With a function
            the batch is treated as a whole.
        reduction: As torch's losses have it. ``"mean"``: over samples, and positions, for cross entropy,
            over all outputs for the others. ``"sum"``. A function has its own.
        class_dim: The state's axis of classes, for cross entropy: 1 if not given, as in
            ``torch.nn.functional.cross_entropy``; of three axes it must be said, since language models
            have classes along the last one, -1.
        scale: D ≥ 0, to measure J D Jᵀ, how the state moves where gradients are scaled: a mapping of
            parameters' names to numbers or tensors of their shape (1 where there is none), or an
            optimizer, whose learning rates and, for Adam and its kin, averages are read when this is
            made. Momentum and weight decay are left out; what the optimizer lacks does not move. J is
            J√D everywhere then, and no layer rule applies.
        engine: ``"hooks"``: the model is not traced, its own forward and ``backward()`` run with hooks on
            its layers, one pass for all probes. ``"auto"``: that where parameters are sharded
            (``fully_shard``, DTensor), of which every process brings its own samples; else by tracing,
            with hooks in place of what cannot be traced.
        group: Processes that hold copies of the model and samples of their own: a process group of
            ``torch.distributed``, or ``"world"``. The kernel is that of all their samples, numbered by
            rank, and all of them make the same calls.

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
        memory: int | str | None = None,
        chunk_size: int | None = None,
        loss: Any = None,
        reduction: str = "mean",
        class_dim: int | None = None,
        scale: Any = None,
        engine: EngineName = "auto",
        group: Any = None,
    ) -> None:
        check_chunk_size(chunk_size)
        budget = parse_memory(memory)
        if engine not in ("auto", "hooks"):
            raise ValueError(f"unknown engine {engine!r}; choose one of 'auto', 'hooks'")
        self.engine = make_engine(
            model,
            inputs,
            outputs=outputs,
            layer=layer,
            batch_dim=batch_dim,
            chunk_size=chunk_size,
            # An engine need not know of what is not asked for.
            **({} if budget is None else {"memory_budget": budget}),
            **({} if loss is None else {"loss": loss, "reduction": reduction, "class_dim": class_dim}),
            **({} if scale is None else {"scale": scale}),
            **({} if engine == "auto" else {"engine": engine}),
            **({} if group is None else {"group": group}),
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
    def memory(self) -> int:
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
        return measure.plan([self, *(checked_other(self, other) for other in others)], metric, rtol)

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
    checked = [checked_other(given[0], kernel) for kernel in given]
    chosen = options_of(options, products, seed, limits, keeps=True)
    found = measure.measure_all(checked, check_metrics(metrics), method, chosen)
    return found.named(names)
