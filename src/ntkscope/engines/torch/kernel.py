"""The engine of torch models: state, J, samples and sizes of one model on one batch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope.engines.base import Machine, Refusal, Sizes
from ntkscope.engines.torch import machine
from ntkscope.engines.torch.batches import difference, digest
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.hooks.instead import hooked_instead
from ntkscope.engines.torch.hooks.samples import NO_DIRECTIONS, HookedSamples
from ntkscope.engines.torch.jacobian import Jacobian
from ntkscope.engines.torch.maps import ForwardMap, KernelMap
from ntkscope.engines.torch.memory import DEFAULT_BUDGET
from ntkscope.engines.torch.modes import undisturbed
from ntkscope.engines.torch.samples import memo
from ntkscope.engines.torch.samples.axes import BatchDim
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.tiles import SampleRows, WholeRows, dense_kernel
from ntkscope.engines.torch.samples.traced import TorchSamples
from ntkscope.engines.torch.state import StateFunction
from ntkscope.engines.torch.vectors import StateVectors
from ntkscope.engines.torch.weighted import weighted_state
from ntkscope.errors import argument
from ntkscope.operators.ledger import Ledger

__all__ = ["TorchEngine"]


class TorchEngine(StateVectors):
    """One torch module on one batch, as :class:`ntkscope.engines.base.Engine` describes it.

    Args:
        model: The module.
        inputs: What it is called with.
        outputs: Picks the state from what the model returns.
        layer: Name of a submodule whose output is the state.
        batch_dim: The axis of the inputs that holds the samples; ``None``: they are coupled.
        memory_budget: Bytes that one step of work may take.
        chunk_size: Vectors in a chunk.
        loss: Whose Hessian's root weights the state; see :mod:`ntkscope.engines.torch.losses`.
        reduction: Of the loss.
        class_dim: The state's axis of classes, for cross entropy.
        scale: D of J D Jᵀ; see :mod:`ntkscope.engines.torch.preconditioner`.
        proven: The same state at another moment, whose module was found to be fit.

    Raises:
        TypeError: As :class:`ntkscope.NTK`.
        ValueError: As :class:`ntkscope.NTK`.
    """

    #: Whether a run may be kept in a file, and gone on with.
    keeps_work = True

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        outputs: Callable[[Any], Tensor] | None = None,
        layer: str | None = None,
        batch_dim: BatchDim | None = 0,
        memory_budget: int = DEFAULT_BUDGET,
        chunk_size: int | None = None,
        loss: str | Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        class_dim: int | None = None,
        scale: Any = None,
        proven: StateFunction | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.budget = memory_budget
        self.function = weighted_state(
            model, inputs, outputs, layer, loss, reduction, class_dim, scale, proven
        )
        self.jacobian = Jacobian(self.function, memory_budget, chunk_size, ledger=self.ledger)
        self._options: dict[str, Any] = {
            "outputs": outputs,
            "layer": layer,
            "batch_dim": batch_dim,
            "memory_budget": memory_budget,
            "chunk_size": chunk_size,
            "loss": loss,
            "reduction": reduction,
            "class_dim": class_dim,
            "scale": scale,
        }
        self._samples: TorchSamples | HookedSamples | Refusal | None = None
        self._sizes: Sizes | None = None
        self._digest: str | None = None

    # What it is.

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p)."""
        return self.jacobian.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the state."""
        return self.function.output_shape

    @property
    def state(self) -> Tensor:
        """The state at the parameters' values."""
        return self.function.state

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype, in which the products run."""
        return self.function.dtype

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.function.device

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """As :attr:`ntkscope.engines.base.Engine.parameters`."""
        return {name: tuple(value.shape) for name, value in self.function.parameters.items()}

    def session(self) -> AbstractContextManager[None]:
        """One thread at a time, outside of inference mode."""
        return undisturbed()

    # Products.

    def map(self) -> ForwardMap:
        """J, shape (n, p)."""
        return ForwardMap(self.jacobian)

    def kernel_map(self) -> KernelMap:
        """K = JJᵀ, both products chunk by chunk."""
        return KernelMap(self.jacobian)

    def check_forward(self) -> None:
        """As :meth:`ntkscope.engines.base.Engine.check_forward`."""
        self.jacobian.check_forward()

    # Structure.

    def samples(self) -> TorchSamples | HookedSamples | Refusal:
        """The Jacobian of every sample on its own, or why there is none."""
        if self._samples is None:
            self._samples = self._find_samples()
        return self._samples

    def _find_samples(self) -> TorchSamples | HookedSamples | Refusal:
        batch_dim = self._options["batch_dim"]
        if batch_dim is None:
            return Refusal(f"{argument('batch_dim', None)} says that they are coupled")
        if callable(self._options["loss"]):
            return Refusal("loss= is a function of the whole batch's state")
        outputs = self._options["outputs"]
        signature = [batch_dim, self._options["layer"], getattr(outputs, "__code__", outputs), self.budget]
        signature += [self._options[name] for name in ("loss", "reduction", "class_dim")]
        known = memo.recall(self.function, signature)
        if known is not None:
            # Another way through the model than for the inputs before: it is traced anew.
            with contextlib.suppress(StructureError):
                return TorchSamples(known.taken_to(self.function, self.ledger))
        try:
            jacobian = SampleJacobian(self.function, batch_dim, self.budget, ledger=self.ledger)
        except StructureError as error:
            return self._hooked(error)
        memo.keep(self.function, signature, jacobian)
        return TorchSamples(jacobian)

    def _hooked(self, error: StructureError) -> HookedSamples | Refusal:
        """The samples without a graph, where hooks give them."""
        options = self._options
        if options["loss"] is not None or options["scale"] is not None:
            # Weights of states and parameters are known to a graph alone.
            return Refusal(str(error))
        names = ("outputs", "layer", "batch_dim", "memory_budget", "chunk_size")
        picked = {name: options[name] for name in names}
        return hooked_instead(self.function, error, picked, self.ledger)

    def sizes(self, kernels: int = 1) -> Sizes:
        """Counts to plan with."""
        if self._sizes is None:
            self._sizes = self._count()
        return dataclasses.replace(self._sizes, kernels=kernels)

    def _count(self) -> Sizes:
        forward = self.function.forward_size
        n, p = self.shape
        base = Sizes(
            n=n,
            p=p,
            batch=1,
            outputs=n,
            operations=forward.operations,
            elements=forward.elements,
            flops=forward.flops,
            budget=self.budget,
            itemsize=self.function.state.element_size(),
        )
        samples = self.samples()
        if isinstance(samples, Refusal):
            return base
        if isinstance(samples, HookedSamples):
            return dataclasses.replace(
                base,
                batch=samples.batch,
                outputs=samples.outputs,
                taps=samples.hooked.output_size,
                gradient_flops=float(p),
                used=p,
                no_directions=NO_DIRECTIONS,
            )
        jacobian = samples.jacobian
        return dataclasses.replace(
            base,
            batch=jacobian.batch,
            outputs=jacobian.outputs,
            taps=sum(math.prod(use.tap_shape) for use in jacobian.graph.uses),
            gradient_flops=jacobian.gradient_flops(),
            used=jacobian.used_parameters(),
            general=jacobian.general_size,
            spread=jacobian.spread(),
            pieces=len(jacobian.graph.pieces),
        )

    def machine(self) -> Machine:
        """How fast the device is at this dtype."""
        return machine.timed(self.device, self.dtype)

    # Matrices.

    def dense(self) -> Tensor:
        """K itself, shape (n, n), in tiles."""
        samples = self.samples()
        if isinstance(samples, HookedSamples):
            return samples.dense()
        source = WholeRows(self.jacobian) if isinstance(samples, Refusal) else SampleRows(samples.jacobian)
        return dense_kernel(source, self.shape[0], self.budget)

    def matrix(self, other: Any) -> Tensor:
        """As :meth:`ntkscope.engines.base.Engine.matrix`."""
        matrix = torch.as_tensor(other).to(self.device, self.dtype)
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("the other kernel has entries that are not finite; look for nan and inf in it")
        if not torch.allclose(matrix, matrix.mT, rtol=1e-3, atol=1e-3 * float(matrix.abs().max())):
            raise ValueError(
                "the other kernel is not symmetric, as a kernel is; pass (A + A.T) / 2 if it nearly is"
            )
        return matrix

    def other_inputs(self, other: Any) -> str:
        """As :meth:`ntkscope.engines.base.Engine.other_inputs`."""
        if not isinstance(other, TorchEngine):
            return str(other.other_inputs(self))
        return difference(self.function.inputs, other.function.inputs)

    def inputs_digest(self) -> str:
        """As :meth:`ntkscope.engines.base.Engine.inputs_digest`; made once for all moments of training."""
        if self._digest is None:
            self._digest = digest(self.function.inputs)
        return self._digest

    # Later in training.

    def at(self, model: nn.Module) -> TorchEngine:
        """The same state with other parameters; the structure is kept if it still holds."""
        twin = TorchEngine(model, self.function.inputs, **self._options, proven=self.function)
        if twin.output_shape != self.output_shape:
            raise ValueError(
                f"the model's state has shape {twin.output_shape} now, expected {self.output_shape}; "
                "make a new NTK of it"
            )
        twin._digest = self._digest
        if isinstance(self._samples, TorchSamples):
            try:
                twin._samples = TorchSamples(self._samples.jacobian.at(twin.function, twin.ledger))
            except StructureError:
                # Another way through the model, or other constants: it is traced when it is needed.
                twin._samples = None
        return twin

    # Another batch.

    def on(self, inputs: Any, ledger: Ledger | None = None, state: Tensor | None = None) -> TorchEngine:
        """As :meth:`ntkscope.engines.base.Engine.on`.

        Args:
            inputs: The batch.
            ledger: Where its products are entered; one of its own if ``None``.
            state: Its state, where that is known, and proven.
        """
        if self._options["loss"] is not None:
            raise ValueError(
                "the state is weighted by a loss= of this batch, which says nothing of other inputs; make an "
                "NTK without loss="
            )
        twin = copy.copy(self)
        twin.ledger, twin.function = ledger or Ledger(), self.function.on(inputs, state)
        twin.jacobian = Jacobian(twin.function, self.budget, self._options["chunk_size"], ledger=twin.ledger)
        twin._samples = twin._sizes = twin._digest = None
        if state is None:
            twin.function.prove_again()
        return twin

    def with_structure(self, known: SampleJacobian) -> TorchSamples:
        """The samples by what was found and checked of the same batch before."""
        self._samples = TorchSamples(known.taken_to(self.function, self.ledger, check=False))
        return self._samples
