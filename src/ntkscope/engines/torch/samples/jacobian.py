"""The Jacobian of every sample on its own: norms, rows and factors of J_b, by layer where rules exist."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from ntkscope.engines.torch.errors import StructureError, first_line, no_structure
from ntkscope.engines.torch.graph.groups import (
    gradient_flops,
    groups_of,
    largest_features,
    largest_work,
    runs_of,
    shared_elements,
    tap_elements,
    tapped_parameters,
)
from ntkscope.engines.torch.graph.opened import Graph, trace
from ntkscope.engines.torch.graph.pieces import jobs
from ntkscope.engines.torch.memory import DEFAULT_BUDGET, Portions, is_out_of_memory
from ntkscope.engines.torch.reverse.pick import pick_reverse
from ntkscope.engines.torch.reverse.workspace import Workspace
from ntkscope.engines.torch.samples.axes import BatchDim, SampleAxes
from ntkscope.engines.torch.samples.check import Candidate, ValuesError, check_structure
from ntkscope.engines.torch.samples.derived import derived_weights
from ntkscope.engines.torch.samples.kept import KeptSums
from ntkscope.engines.torch.samples.linearization import Linearization
from ntkscope.engines.torch.samples.rounding import linearize_with_noise
from ntkscope.engines.torch.state import StateFunction
from ntkscope.operators.ledger import Ledger

__all__ = ["SampleJacobian"]

Result = TypeVar("Result")

# So many samples are traced until a graph holds for all.
_TRIED = 3


class SampleJacobian:
    """J_b = ∂(state of sample b)/∂parameters for every sample b of a batch.

    Args:
        function: The state as a function of the parameters.
        batch_dim: Which axis of the inputs holds the samples.
        budget: Bytes that one step may take.
        ledger: Where products are entered.

    Raises:
        StructureError: If the samples are coupled, or the model cannot be traced.

    Attributes:
        batch: B, the number of samples.
        outputs: s, the size of one sample's state.
        graph: The traced state of one sample.
        ledger: Where products are entered; those of a part of the batch count in part.
    """

    def __init__(
        self,
        function: StateFunction,
        batch_dim: BatchDim,
        budget: int = DEFAULT_BUDGET,
        *,
        ledger: Ledger | None = None,
    ) -> None:
        self.function = function
        self.axes = SampleAxes.find(function, batch_dim)
        self.batch = self.axes.batch
        self.outputs = math.prod(self.axes.state_shape)
        self.ledger = Ledger() if ledger is None else ledger
        try:
            self._find_graph(budget)
        except StructureError as refusal:
            if not self._is_routed(refusal, budget):
                raise

    def _is_routed(self, refusal: StructureError, budget: int) -> bool:
        """Whether a graph holds, and is kept, in which all rows are taken where masks select some."""
        if isinstance(refusal, ValuesError) and refusal.sample is None:
            return False
        if (routed := self.axes.where_routed(self.function)) is None:
            return False
        plain, self.axes = self.axes, routed
        try:
            self._find_graph(budget)
        except StructureError:
            self.axes = plain
            return False
        return True

    def _find_graph(self, budget: int) -> None:
        """The graph of the first sample, or of one for which that does not hold."""
        sample, refusal = 0, None
        for _ in range(_TRIED):
            self._take(self._trace(sample), budget)
            try:
                return self._check()
            except ValuesError as error:
                refusal = refusal or error
                if error.sample is None:
                    break
                sample = error.sample
        assert refusal is not None
        raise refusal

    def _take(self, graph: Graph, budget: int) -> None:
        self.graph = graph
        self._whole: Linearization | None = None
        self._workspace = Workspace()
        with no_structure("the recorded graph cannot be used"):
            self.groups = groups_of(self.graph)
            self._derived = derived_weights(self.graph, self.function.parameters)
            self._portions = self._find_portions(budget)
            self._reverse = pick_reverse(self.graph, runs_of(self.groups))

    def _trace(self, number: int) -> Graph:
        function = self.function
        sample = [leaf[0] for leaf in self.axes.split(function.inputs, range(number, number + 1))]

        def one(parameters: Mapping[str, Tensor], leaves: list[Tensor]) -> Tensor:
            state = self.axes.of_one_sample(function, parameters, leaves)
            return state if state.dim() else state.reshape(1)

        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return trace(one, function.parameters, sample)

    def linearizations(self, samples: int) -> Iterator[tuple[range, Linearization]]:
        """The batch in parts of so many samples, each run forward once; the whole batch is kept."""
        if samples >= self.batch:
            whole = range(self.batch)
            self._whole = self._whole or self.linearize(whole)
            yield whole, self._whole
            return
        for start in range(0, self.batch, samples):
            part = range(start, min(start + samples, self.batch))
            yield part, self.linearize(part)

    def linearize(self, samples: range) -> Linearization:
        """The graph of some samples, run forward once."""
        function = self.function
        leaves = self.axes.split(function.inputs, samples)
        weights = function.parameters | (self._derived.values if self._derived else {})
        reverse = self._reverse.begin(weights, leaves, function.device)
        return Linearization(self.graph, self.groups, reverse, self._derived)

    def at(self, function: StateFunction, ledger: Ledger) -> SampleJacobian:
        """The same graph at other parameters of the same model, checked as if it were new.

        Raises:
            StructureError: If the graph does not hold there.
        """
        if self.function.constants() != function.constants():
            raise StructureError("the model's frozen parameters or buffers are others")
        return self.taken_to(function, ledger)

    def stripped(self) -> SampleJacobian:
        """The graph and what follows from it alone, to be kept: no values, and nothing of the module."""
        bare = copy.copy(self)
        bare._whole, bare._workspace, bare.ledger = None, Workspace(), Ledger()
        del bare.function, bare._derived
        return bare

    def taken_to(self, function: StateFunction, ledger: Ledger, *, check: bool = True) -> SampleJacobian:
        """The same graph for a function with the same constants.

        Args:
            function: The function.
            ledger: Where products are entered.
            check: Whether it is checked as if it were new; not needed where it was for the same values.

        Raises:
            StructureError: If the graph does not hold there.
        """
        twin = copy.copy(self)
        twin.function, twin._whole, twin._workspace = function, None, Workspace()
        twin._derived = derived_weights(twin.graph, function.parameters)
        twin._portions = twin._find_portions(self._portions.budget)
        twin.ledger = ledger
        if check:
            twin._check()
        return twin

    def _find_portions(self, budget: int) -> Portions:
        """How much is worked on at once, from the sizes of the forward pass and of the gradients."""
        formed = 0 if self._derived is None else self._derived.formed_size
        size, item = self.function.forward_size, self.function.state.element_size()
        features, work = largest_features(self.graph, self.groups), largest_work(self.graph, self.groups)
        return Portions(
            batch=self.batch,
            sample=item * (3 * size.elements / self.batch + features),
            # Output gradients, general gradients, one group's work.
            pair=item * max(1, 3 * tap_elements(self.graph) + self.general_size + work + formed),
            piece=max((len(piece.entries) for piece in self.graph.pieces), default=1),
            operations=size.operations,
            budget=budget,
        )

    @property
    def budget(self) -> int:
        """Bytes that one step may take."""
        return self._portions.budget

    def portions(self, probes: int) -> tuple[int, int]:
        """(samples, probes) of one step of work on so many probes."""
        return self._portions.of(probes)

    def portioned(self, work: Callable[[], Result], probes: int) -> Result:
        """The result of work that asks for its portions, smaller ones each time that memory runs out.

        Raises:
            MemoryError: If a single sample with a single probe does not fit.
        """
        return self._portions.run(work, probes, self._release)

    @property
    def general_size(self) -> int:
        """Parameters that take the general way."""
        sizes = self.graph.sizes
        return sum(sizes[name] for name in self.graph.general)

    def gradient_flops(self) -> float:
        """Multiply-adds of the gradients' norms, for one sample and probe."""
        return gradient_flops(self.graph, self.groups)

    def spread(self) -> float:
        """How many times the work of the batch a backward pass of all samples takes."""
        # What no sample reaches is computed once, and goes back for every sample.
        return 1 + shared_elements(self.graph) * (self.batch - 1) / self.function.forward_size.elements

    def used_parameters(self) -> int:
        """Parameters in all operations together: one that is used twice counts twice."""
        return tapped_parameters(self.graph) + self.general_size

    def describe(self) -> str:
        """What is known of the model, in words."""
        lines = [
            f"{self.batch:,} independent samples with {self.outputs:,} outputs each; "
            f"{len(self.graph.uses):,} uses of parameters are known by layer"
        ]
        if len(self.graph.pieces) > 1:
            lines[0] += f", the state comes in {len(self.graph.pieces):,} pieces"
        if self._reverse.words:
            lines[0] += f", {self._reverse.words}"
        if self.graph.derivation is not None:
            lines[0] += f", {len(self.graph.derivation.weights):,} weights derived from parameters"
        for name, reason in self.graph.why_general.items():
            lines.append(f"  {name} takes the general way: {reason}")
        return "\n".join(lines)

    # Norms.

    def squared_norms(self, z: Tensor) -> Tensor:
        """‖J_bᵀz_b‖² for every probe and sample, in float64: (k, n) → (k, B).

        Raises:
            MemoryError: If a single sample with a single probe does not fit.
        """
        return self.portioned(lambda: self._squared_norms(z), self.outputs)

    def _squared_norms(self, z: Tensor) -> Tensor:
        blocks = self.axes.to_samples(z)
        out = torch.zeros(z.shape[0], self.batch, dtype=torch.float64, device=z.device)
        samples, probes = self._portions.of(z.shape[0])
        for part, linear in self.linearizations(samples):
            for start in range(0, z.shape[0], probes):
                rows = slice(start, min(start + probes, z.shape[0]))
                own = out[rows, part.start : part.stop]
                for gradient in linear.pull(blocks[rows, part.start : part.stop], self._workspace):
                    own += gradient.factor.squared_norms()
        self.ledger.add(vjps=z.shape[0])
        return out

    def frobenius_squared(self, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """‖J_b‖²_F for every sample, exactly, in float64: shape (B,), by s one-hot probes.

        Outputs that a recurrence computes early are pulled back through the steps before them alone.

        Raises:
            MemoryError: If a single sample with a single probe does not fit.
        """
        sums = KeptSums("exact squares", self.batch)
        return self.portioned(lambda: self._frobenius_squared(progress, sums), self.outputs)

    def _frobenius_squared(self, progress: Callable[[int, int], None] | None, sums: KeptSums) -> Tensor:
        done = 0
        device = self.function.device
        (samples, probes), start, known = sums.begin(self._portions.of(self.outputs))
        out = torch.from_numpy(known).to(device)
        numbers = itertools.count()
        for part, linear in self.linearizations(samples):
            for job in jobs(self.graph.pieces, probes):
                number = next(numbers)
                if number < start:
                    done += sum(len(entries) for _, entries in job) * len(part)
                    continue
                for gradient in linear.pull_pieces(job, self._workspace):
                    norms = gradient.factor.squared_norms()
                    out[part.start : part.stop] += norms.sum(0, dtype=torch.float64)
                done += sum(len(entries) for _, entries in job) * len(part)
                sums.keep(number + 1, out)
                if progress is not None:
                    progress(done, self.outputs * self.batch)
        self.ledger.add(vjps=self.outputs)
        sums.keep(next(numbers), out, last=True)
        return out

    def _release(self) -> None:
        self._whole, self._workspace = None, Workspace()

    def _check(self) -> None:
        """By the quickest reverse pass that agrees with the model; the last resort must."""
        while True:
            at_once, _ = self._portions.of(1)
            candidate = self._candidate()
            try:
                return check_structure(candidate, self.linearizations(at_once))
            except ValuesError:
                raise
            except Exception as error:
                fallback = self._reverse.given_up(first_line(error))
                if fallback is None or is_out_of_memory(error):
                    raise
            # An operation that is not what its name says: what autograd says of it holds.
            self._reverse, self._whole = fallback, None

    def _candidate(self) -> Candidate:
        return Candidate(self.function, self.axes, self.graph, self.groups, self.linearize, self._with_noise)

    def _with_noise(self, samples: range) -> Linearization:
        """As :meth:`linearize`, with every result off by rounding."""
        function = self.function
        leaves = self.axes.split(function.inputs, samples)
        return linearize_with_noise(self.graph, self.groups, function.parameters, leaves, function.device)
