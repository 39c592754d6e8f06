"""A second engine, in one file: one layer h = f(XWᵀ) in NumPy, with its derivatives written by hand.

It stands here for whatever framework comes next: ``ENGINE`` is its line in ``engines.pick.ENGINES``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy as array_api_numpy
import numpy as np
from numpy.typing import NDArray

from ntkscope.engines.base import Directions, Machine, Refusal, Sizes
from ntkscope.operators.arrays import ArrayBlocks
from ntkscope.operators.ledger import Ledger
from ntkscope.operators.probes import sphere_probes

__all__ = ["ENGINE", "Layer", "LinearEngine", "accepts", "make"]

Array = NDArray[Any]

ENGINE = ("numpy", "linear_engine")


@dataclass
class Layer:
    """A model: h = XWᵀ, or its hyperbolic tangent.

    Attributes:
        weight: W, shape (outputs, inputs).
        is_tanh: Whether a hyperbolic tangent follows.
    """

    weight: Array
    is_tanh: bool = False

    def __call__(self, x: Array) -> Array:
        state = x @ self.weight.T
        return np.tanh(state) if self.is_tanh else state

    def slopes(self, x: Array) -> Array:
        """What a state moves by when its sum does: shape (B, s)."""
        state = self(x)
        return 1 - state**2 if self.is_tanh else np.ones_like(state)


def accepts(model: Any) -> bool:
    """Whether a model is such a layer."""
    return isinstance(model, Layer)


class _LayerMap(ArrayBlocks):
    """J, Jᵀ or K as a map of blocks, whose products are entered in the engine's ledger."""

    def __init__(self, engine: LinearEngine, kind: str) -> None:
        super().__init__(array_api_numpy, engine.dtype, None)
        n, p = engine.shape
        self.shape = {"forward": (n, p), "reverse": (p, n), "kernel": (n, n)}[kind]
        self.ledgers = (engine.ledger,)
        self._engine, self._kind = engine, kind

    @property
    def T(self) -> _LayerMap:
        turned = {"forward": "reverse", "reverse": "forward", "kernel": "kernel"}
        return _LayerMap(self._engine, turned[self._kind])

    def probes(self, start: int, stop: int, *, seed: int, stream: int) -> Array:
        return self.from_numpy(sphere_probes(self.shape[1], start, stop, seed=seed, stream=stream))

    def identity(self, start: int, stop: int) -> Array:
        return self.from_numpy(np.eye(self.shape[1])[:, start:stop])

    def apply(self, block: Array) -> Array:
        if self._kind == "reverse":
            return self._engine.vjp(block)
        if self._kind == "forward":
            return self._engine.jvp(block)
        self._engine.ledger.add(products=block.shape[1])
        return self._engine.jvp(self._engine.vjp(block))

    def squares(self, block: Array) -> Array:
        product = self.apply(block)
        return self.inner(product, product)

    def __matmul__(self, v: Any) -> Array:
        block = self.from_numpy(np.asarray(v))
        if block.shape[0] != self.shape[1]:
            raise ValueError(f"expected {self.shape[1]} numbers in a column, found {block.shape[0]}")
        return self.apply(block.reshape(len(block), -1)).reshape(-1, *block.shape[1:])


class LinearEngine:
    """One layer on one batch, as :class:`ntkscope.engines.base.Engine` describes it."""

    def __init__(self, model: Layer, inputs: Any, *, memory_budget: int = 1 << 30, **options: Any) -> None:
        if options.get("outputs") is not None or options.get("layer") is not None:
            raise ValueError("a layer has one state; leave outputs= and layer= out")
        self.ledger = Ledger()
        self.budget = memory_budget
        self._options = options
        self._inputs = np.asarray(inputs)
        # A snapshot: training the layer does not change the kernel.
        self._layer = Layer(model.weight.copy(), model.is_tanh)
        self._state = self._layer(self._inputs)
        self._slopes = self._layer.slopes(self._inputs)

    @property
    def shape(self) -> tuple[int, int]:
        return (self._state.size, self._state.shape[1] * self._inputs.shape[1])

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self._state.shape

    @property
    def state(self) -> Array:
        return self._state

    @property
    def dtype(self) -> Any:
        return self._state.dtype

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        return {"weight": self._layer.weight.shape}

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def vjp(self, block: Array) -> Array:
        """Jᵀz = (f′ ∘ Z)ᵀX for every column: (n, k) to (p, k)."""
        self.ledger.add(vjps=block.shape[1])
        delta = self._slopes[..., None] * block.reshape(*self._slopes.shape, -1)
        return np.einsum("bok,bi->oik", delta, self._inputs).reshape(self.shape[1], -1)

    def jvp(self, block: Array) -> Array:
        """Ju = f′ ∘ (XUᵀ) for every column: (p, k) to (n, k)."""
        self.ledger.add(jvps=block.shape[1])
        tangents = block.reshape(self._slopes.shape[1], self._inputs.shape[1], -1)
        moved = self._slopes[..., None] * np.einsum("bi,oik->bok", self._inputs, tangents)
        return moved.reshape(self.shape[0], -1)

    def map(self) -> _LayerMap:
        return _LayerMap(self, "forward")

    def kernel_map(self) -> _LayerMap:
        return _LayerMap(self, "kernel")

    def check_forward(self) -> None:
        """There are forward products."""

    def samples(self) -> LinearSamples | Refusal:
        if self._options.get("batch_dim", 0) is None:
            return Refusal("batch_dim=None says that they are coupled")
        return LinearSamples(self._inputs, self._slopes, self.ledger)

    def sizes(self, kernels: int = 1) -> Sizes:
        (n, p), outputs = self.shape, self._state.shape[1]
        batch = n // outputs
        return Sizes(
            n=n, p=p, batch=batch, outputs=outputs, operations=2, elements=n, flops=2 * batch * p,
            taps=outputs, gradient_flops=outputs, used=p, kernels=kernels, budget=self.budget,
            itemsize=self._state.itemsize,
        )  # fmt: skip

    def machine(self) -> Machine:
        return Machine(flops=1e10, elements=1e9, call=1e-6)

    def dense(self) -> Array:
        return self.jvp(self.vjp(np.eye(self.shape[0], dtype=self.dtype)))

    def matrix(self, other: Any) -> Array:
        matrix = np.asarray(other, dtype=self.dtype)
        if not np.allclose(matrix, matrix.T):
            raise ValueError("the other kernel is not finite or not symmetric, as a kernel is")
        return matrix

    def other_inputs(self, other: LinearEngine) -> str:
        return "" if np.array_equal(self._inputs, other._inputs) else "the inputs differ"

    def inputs_digest(self) -> str:
        return hashlib.blake2b(self._inputs.astype(np.float32).tobytes()).hexdigest()

    def as_state(self, values: NDArray[np.float64]) -> Array:
        return values.astype(self.dtype).reshape(self.output_shape)

    def state_gradient(self, loss: Callable[[Array], float]) -> Array:
        # NumPy differentiates nothing: central differences, exact for quadratic losses.
        steps = np.eye(self._state.size).reshape(-1, *self._state.shape)
        return np.array([(loss(self._state + step) - loss(self._state - step)) / 2 for step in steps])

    def on(self, inputs: Any) -> LinearEngine:
        return LinearEngine(self._layer, inputs, memory_budget=self.budget, **self._options)

    def at(self, model: Layer) -> LinearEngine:
        return LinearEngine(model, self._inputs, memory_budget=self.budget, **self._options)


make = LinearEngine


@dataclass(frozen=True, eq=False)
class LinearSamples:
    """J_b of every sample: row o is f′_bo x_b in the place of W's row o."""

    inputs: Array
    slopes: Array
    ledger: Ledger

    @property
    def batch(self) -> int:
        return len(self.slopes)

    @property
    def outputs(self) -> int:
        return self.slopes.shape[1]

    @property
    def direction_size(self) -> int:
        return self.slopes.shape[1] * self.inputs.shape[1]

    def state_index(self) -> Array:
        return np.arange(self.slopes.size).reshape(self.slopes.shape)

    def squares(self, probes: Array) -> Array:
        self.ledger.add(vjps=probes.shape[1])
        rows = probes.astype(np.float64).reshape(*self.slopes.shape, -1)
        rows = rows * np.sqrt(self.outputs / np.sum(rows**2, axis=1, keepdims=True))
        delta = self.slopes[..., None] * rows
        return (np.sum(delta**2, axis=1) * self._lengths()[:, None]).T

    def forward_squares(self, count: int, directions: Directions) -> Array:
        self.ledger.add(jvps=count)
        drawn = directions(range(count), range(self.batch))
        drawn = drawn.reshape(count, self.batch, self.outputs, self.inputs.shape[1])
        moved = self.slopes * np.einsum("bi,kboi->kbo", self.inputs, drawn)
        return np.sum(moved**2, axis=2)

    def exact_squares(self, report: Callable[[int, int], None]) -> Array:
        self.ledger.add(vjps=self.outputs)
        return np.sum(self.slopes**2, axis=1) * self._lengths()

    def exact_moments(
        self, others: Sequence[LinearSamples], report: Callable[[int, int], None]
    ) -> tuple[Array, Array]:
        # K is a block an output: f′_bo f′_co x_b·x_c. Two of them meet in the blocks of one output.
        kernels = []
        for samples in (self, *others):
            samples.ledger.add(vjps=samples.outputs)
            gram = samples.inputs @ samples.inputs.T
            kernels.append(np.einsum("bo,co,bc->obc", samples.slopes, samples.slopes, gram))
        traces = [np.einsum("obb->", kernel) for kernel in kernels]
        inner = [[np.sum(one * other) for other in kernels] for one in kernels]
        return np.array(traces), np.array(inner)

    def probed(self) -> ProbedLayer:
        return ProbedLayer(self)

    def grams(self, probes: NDArray[np.int8], rows: int, *, across: bool) -> Array:
        self.ledger.add(vjps=probes.shape[1])
        delta = self.slopes[..., None] * probes.reshape(*self.slopes.shape, -1)
        sets = np.einsum("bok,bi->kboi", delta, self.inputs)
        sets = sets.reshape(-1, rows, self.batch, self.direction_size)
        return np.einsum("rabp,rcdp->rabcd" if across else "rabp,rcbp->rac", sets, sets)

    def output_grams(
        self, outputs: NDArray[np.int64], *, across: bool, report: Callable[[int, int], None]
    ) -> Array:
        one_hot = np.zeros((self.batch, self.outputs, outputs.size), dtype=np.int8)
        one_hot[:, outputs.T.reshape(-1), np.arange(outputs.size)] = 1
        return self.grams(one_hot.reshape(self.slopes.size, -1), len(outputs), across=across).sum(axis=0)

    def output_squares(self, report: Callable[[int, int], None]) -> Array:
        self.ledger.add(vjps=self.outputs)
        return self.slopes**2 * self._lengths()[:, None]

    def in_parts(self, parts: Mapping[str, int]) -> LinearParts:
        return LinearParts(self)

    def forward(self, count: int, directions: Directions) -> Array:
        self.ledger.add(jvps=count)
        drawn = directions(range(count), range(self.batch))
        drawn = drawn.reshape(count, self.batch, self.outputs, self.inputs.shape[1])
        return (self.slopes * np.einsum("bi,kboi->kbo", self.inputs, drawn)).reshape(count, -1)

    def is_comparable(self, other: Any) -> bool:
        return isinstance(other, LinearSamples) and self.slopes.shape == other.slopes.shape

    def describe(self) -> str:
        return f"{self.batch} independent samples with {self.outputs} outputs each"

    def _lengths(self) -> Array:
        return np.sum(self.inputs**2, axis=1)


@dataclass(frozen=True)
class LinearParts:
    """The one part that a layer without bias has."""

    samples: LinearSamples

    def squares(self, probes: Array) -> Array:
        return self.samples.squares(probes)[..., None]

    def exact_squares(self, report: Callable[[int, int], None]) -> Array:
        return self.samples.exact_squares(report)[:, None]

    def exact_moments(
        self, others: Sequence[LinearParts], report: Callable[[int, int], None]
    ) -> tuple[Array, Array]:
        return self.samples.exact_moments([other.samples for other in others], report)

    def probed(self) -> Sequence[ProbedLayer]:
        return [self.samples.probed()]


class ProbedLayer:
    """J_bᵀz of every sample for probes that are added to: shape (B, k, p)."""

    def __init__(self, samples: LinearSamples) -> None:
        self._samples = samples
        self._gradients = np.zeros((samples.batch, 0, samples.direction_size))

    @property
    def batch(self) -> int:
        return self._samples.batch

    @property
    def batches(self) -> tuple[int, ...]:
        return (self.batch,)

    @property
    def size(self) -> int:
        return self._samples.slopes.size

    @property
    def epsilon(self) -> float:
        return float(np.finfo(self._samples.slopes.dtype).eps)

    def add(self, signs: NDArray[np.int8]) -> None:
        self._samples.ledger.add(vjps=signs.shape[1])
        slopes, inputs = self._samples.slopes, self._samples.inputs
        delta = slopes[..., None] * signs.reshape(*slopes.shape, -1)
        fresh = np.einsum("bok,bi->bkoi", delta, inputs).reshape(self.batch, signs.shape[1], -1)
        self._gradients = np.concatenate([self._gradients, fresh], axis=1)

    def by_layer(self) -> dict[str, ProbedLayer]:
        return {"weight": self}

    def ring(
        self, order: NDArray[np.int64], block: int, offsets: Sequence[int], room: int
    ) -> Iterator[tuple[int, int, Array]]:
        missing = -self.batch % block
        rows = np.pad(self._gradients[order], ((0, missing), (0, 0), (0, 0)))
        rows = rows.reshape(-1, block, *rows.shape[1:])
        for offset in offsets:
            yield offset, 0, np.einsum("usip,utjp->usitj", rows, np.roll(rows, -offset, axis=0))
