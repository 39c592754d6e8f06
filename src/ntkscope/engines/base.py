"""What an engine offers: J as a map, the structure of single samples, and counts to plan with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ntkscope.operators.ledger import Ledger
from ntkscope.operators.space import Factor, Small
from ntkscope.runs.ring import ProbedSamples

__all__ = [
    "Directions",
    "Engine",
    "LinearMap",
    "Machine",
    "ProbedSamples",
    "Refusal",
    "SampleParts",
    "Samples",
    "Sizes",
    "layer_of",
]

#: ``directions(probes, samples)``: random probes over the parameters, shape (k, B, p).
Directions: TypeAlias = Callable[[range, range], NDArray[np.float64]]


def layer_of(parameter: str) -> str:
    """The module that a parameter is of, by its dotted name; ``"self"`` for the model's own.

    >>> layer_of("encoder.0.weight"), layer_of("scale"), layer_of("0.parametrizations.weight.original1")
    ('encoder.0', 'self', '0')
    """
    # A parametrised weight is kept in modules within the module that it is of.
    owner, parametrized, _ = f".{parameter}".partition(".parametrizations.")
    return (owner if parametrized else owner.rpartition(".")[0])[1:] or "self"


@dataclass(frozen=True)
class Machine:
    """What a device does in a second.

    Attributes:
        flops: Floating-point operations of matrix products.
        elements: Numbers written by elementwise operations.
        call: Seconds that one tensor operation takes at least.
    """

    flops: float
    elements: float
    call: float

    def seconds(self, flops: float, elements: float, calls: float) -> float:
        """Predicted time of work with these counts."""
        return flops / self.flops + elements / self.elements + calls * self.call


@dataclass(frozen=True)
class Sizes:
    """The counts of a problem.

    Attributes:
        n: Size of the state.
        p: Number of parameters.
        batch: Samples, or 1 if they are coupled.
        outputs: State of one sample.
        operations: Tensor operations of one forward pass of the batch.
        elements: Numbers that it writes.
        flops: Its floating-point operations.
        taps: Numbers in all output gradients of one sample and probe, where the layers are known.
        gradient_flops: Work of the parameter gradients' norms of one sample and probe.
        general: Parameters that take the general way.
        spread: How many times the work of the batch one backward pass of all samples takes, where parts of
            the model see no sample.
        used: Parameters in all operations together, one that is used twice counted twice.
        pieces: Parts of the state that are pulled back on their own.
        kernels: Kernels that are measured together.
        budget: Bytes to work in.
        itemsize: Bytes of a number.
        held: Samples whose gradients are kept at once; all of them if 0.
        no_products: Why there are no products with J over the whole batch; empty where there are.
        no_directions: Why samples have no forward products of their own; empty where they have.
    """

    n: int
    p: int
    batch: int
    outputs: int
    operations: int
    elements: int
    flops: int
    taps: int = 0
    gradient_flops: float = 0.0
    general: int = 0
    spread: float = 1.0
    used: int = 0
    pieces: int = 1
    kernels: int = 1
    budget: int = 1 << 30
    itemsize: int = 4
    held: int = 0
    no_products: str = ""
    no_directions: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why there is no per-sample structure."""

    reason: str


class Samples(Protocol):
    """The Jacobian J_b of every sample b on its own.

    Attributes:
        batch: B, the number of samples.
        outputs: s, the size of one sample's state.
    """

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        ...

    @property
    def outputs(self) -> int:
        """The size of one sample's state."""
        ...

    def state_index(self) -> NDArray[np.int64]:
        """Position in the flattened state of every output of every sample: shape (B, s)."""
        ...

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """‖J_bᵀz_b‖² for probes z over the whole state, shape (n, k), to (k, B); k VJPs.

        Every z_b is scaled to the length √outputs, so that z_b of a point on the sphere, or of a
        normal vector, is uniform on the sphere of its sample. Where the outputs of a sample fall into
        strata that are known without looking at a probe, each of m outputs has the length √m.
        """
        ...

    def forward_squares(self, count: int, directions: Directions) -> Small:
        """‖J_b u_b‖² with a direction of its own for every probe and sample: shape (count, B); JVPs.

        Raises:
            ValueError: If the model has no forward mode.
        """
        ...

    @property
    def direction_size(self) -> int:
        """Length of a sample's direction in :meth:`forward_squares`."""
        ...

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every sample, exactly: shape (B,); s VJPs."""
        ...

    def exact_moments(
        self, others: Sequence[Samples], report: Callable[[int, int], None]
    ) -> tuple[Small, Small]:
        """Traces (c,) and inner products (c, c) of this kernel and the others, exactly."""
        ...

    def probed(self) -> ProbedSamples:
        """Gradients of every sample for random probes, with their inner products; none drawn yet."""
        ...

    def grams(self, probes: NDArray[np.int8], rows: int, *, across: bool) -> Small:
        """Inner products of gradients of probes over the whole state, shape (n, r · rows), r · rows VJPs.

        Probe i·rows + a is row a of set i; G_ab = J_bᵀz_ab.

        Args:
            probes: The probes.
            rows: How many make a set.
            across: Whether samples are rows too: ⟨G_ab, G_a'b'⟩, shape (r, rows, B, rows, B) for each
                set; else they are summed over, Σ_b ⟨G_ab, G_a'b⟩, shape (r, rows, rows).
        """
        ...

    def output_grams(
        self, outputs: NDArray[np.int64], *, across: bool, report: Callable[[int, int], None]
    ) -> Small:
        """The sum over columns j of the inner products of the rows (a, j) of J; as many VJPs as outputs.

        Args:
            outputs: Numbers of one sample's outputs, shape (rows, columns).
            across: As in :meth:`grams`: Σ_j ⟨G_ajb, G_a'jb'⟩, shape (rows, B, rows, B); else summed over
                samples too, shape (rows, rows).
            report: Called with (done, in all).
        """
        ...

    def output_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖∂h_bi/∂θ‖² of every output of every sample, exactly: shape (B, s); s VJPs."""
        ...

    def in_parts(self, parts: Mapping[str, int]) -> SampleParts:
        """The same by parts of the parameters, each given by its number."""
        ...

    def forward(self, count: int, directions: Directions) -> Small:
        """J_b u_b with directions as in :meth:`forward_squares`, to (count, n); ``count`` JVPs.

        Raises:
            ValueError: If the model has no forward mode.
        """
        ...

    def is_comparable(self, other: Samples) -> bool:
        """Whether the other's samples lie along the same axes of the state."""
        ...

    def describe(self) -> str:
        """What is known of the model, in words."""
        ...


class SampleParts(Protocol):
    """J_b of every sample, with its parameters in L parts."""

    def squares(self, probes: NDArray[np.floating[Any]]) -> Small:
        """As :meth:`Samples.squares` of every part: (n, k) to (k, B, L); k VJPs."""
        ...

    def exact_squares(self, report: Callable[[int, int], None]) -> Small:
        """‖J_b‖²_F of every part: shape (B, L); s VJPs."""
        ...

    def exact_moments(
        self, others: Sequence[SampleParts], report: Callable[[int, int], None]
    ) -> tuple[Small, Small]:
        """Traces (c·L,) and inner products (c·L, c·L) of all parts of c kernels, exactly; s VJPs each."""
        ...

    def probed(self) -> Sequence[ProbedSamples]:
        """Gradients for random probes of every part, which are pulled back once for all."""
        ...


class LinearMap(Factor, Protocol):
    """A map that users take as well, with ``@`` on what they hold in their hands."""

    @property
    def T(self) -> LinearMap:
        """The transpose; K is its own."""
        ...

    def __matmul__(self, v: Any) -> Any:
        """The product with a vector or a block, of the framework or of NumPy, in its kind.

        Raises:
            ValueError: If the first axis does not fit.
        """
        ...


class Engine(Protocol):
    """One model on one batch: J = ∂state/∂parameters, whatever the framework.

    Attributes:
        ledger: Where every product is entered.
        budget: Bytes that one step of work may take.
    """

    ledger: Ledger
    budget: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p): states and parameters."""
        ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the state."""
        ...

    @property
    def state(self) -> Any:
        """The state at the parameters' values, detached."""
        ...

    @property
    def dtype(self) -> Any:
        """In which the products run."""
        ...

    @property
    def device(self) -> Any:
        """Where the state lives."""
        ...

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each parameter, by its name, in the order in which J's columns stand for them."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """The context in which all work with this engine is done."""
        ...

    def map(self) -> LinearMap:
        """J, shape (n, p); its ``T`` is Jᵀ."""
        ...

    def kernel_map(self) -> LinearMap:
        """K = JJᵀ, shape (n, n)."""
        ...

    def check_forward(self) -> None:
        """Tries forward mode.

        Raises:
            NotImplementedError: If there are no products Ju.
        """
        ...

    def samples(self) -> Samples | Refusal:
        """The structure of single samples, or why there is none; found out once."""
        ...

    def sizes(self, kernels: int = 1) -> Sizes:
        """Counts to plan with; nothing of the model runs, but what finds the samples."""
        ...

    def machine(self) -> Machine:
        """What the device does in a second."""
        ...

    def dense(self) -> Any:
        """K itself, shape (n, n), as an array of the framework."""
        ...

    def matrix(self, other: Any) -> Any:
        """Another kernel given as an array, on this device in this dtype.

        Raises:
            ValueError: If it is not finite or not symmetric.
        """
        ...

    def as_state(self, values: NDArray[np.float64]) -> Any:
        """Numbers of the host, shape (n,), as an array like the state."""
        ...

    def state_gradient(self, loss: Callable[[Any], Any]) -> Any:
        """∂L/∂h of a loss of the state, an array of the framework of shape (n,).

        Args:
            loss: Takes the state, in its shape, to one number.

        Raises:
            TypeError: If it does not return one number of the framework.
            ValueError: If the gradient is not finite, or the loss does not depend on the state.
        """
        ...

    def other_inputs(self, other: Engine) -> str:
        """How another engine's batch differs from this one, by values and not by names or shapes.

        Returns:
            Words such as ``"input 0 differs in 3 of 5 rows"``; empty where all that can be compared is equal.
        """
        ...

    def inputs_digest(self) -> str:
        """A hash of the values of the batch, the same on every device and for every model."""
        ...

    def on(self, inputs: Any) -> Engine:
        """The same model at the same parameters on other inputs, whatever became of the model since.

        Raises:
            ValueError: As for a new engine, and where the state is weighted by a loss of this batch.
        """
        ...

    def at(self, model: Any) -> Engine:
        """The same state of the same model with other parameters.

        Raises:
            ValueError: If the state has another shape.
        """
        ...
