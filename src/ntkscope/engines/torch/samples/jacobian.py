"""The Jacobian of every sample on its own: norms, rows and factors of J_b, by layer where rules exist."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ntkscope.engines.torch.graph.groups import (
    gradient_flops,
    groups_of,
    largest_features,
    largest_work,
    runs_of,
    tap_elements,
    tapped_parameters,
)
from ntkscope.engines.torch.graph.opened import Graph, Piece, trace
from ntkscope.engines.torch.memory import DEFAULT_BUDGET
from ntkscope.engines.torch.meter import is_out_of_memory
from ntkscope.engines.torch.reverse.pick import pick_reverse
from ntkscope.engines.torch.samples.axes import BatchDim, SampleAxes, StructureError
from ntkscope.engines.torch.samples.check import check_structure
from ntkscope.engines.torch.samples.linearization import Linearization
from ntkscope.engines.torch.state import StateFunction

__all__ = ["SampleJacobian"]


class SampleJacobian:
    """J_b = ∂(state of sample b)/∂parameters for every sample b of a batch.

    Args:
        function: The state as a function of the parameters.
        batch_dim: Which axis of the inputs holds the samples.
        budget: Bytes that one step may take.

    Raises:
        StructureError: If the samples are coupled, or the model cannot be traced.

    Attributes:
        batch: B, the number of samples.
        outputs: s, the size of one sample's state.
        graph: The traced state of one sample.
        vjps: Reverse products of the batch run so far; parts of it count in parts.
        jvps: Forward products of the batch run so far.
    """

    def __init__(self, function: StateFunction, batch_dim: BatchDim, budget: int = DEFAULT_BUDGET) -> None:
        self.function = function
        self.axes = SampleAxes.find(function, batch_dim)
        self.batch = self.axes.batch
        self.outputs = math.prod(self.axes.state_shape)
        self._budget = budget
        self.graph = self._trace()
        self.groups = groups_of(self.graph)
        self._reverse = pick_reverse(self.graph, runs_of(self.groups))
        self._whole: Linearization | None = None
        self._check()
        self.vjps = 0.0
        self.jvps = 0.0

    def _trace(self) -> Graph:
        function = self.function
        sample = [leaf[0] for leaf in self.axes.split(function.inputs, range(1))]

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
        reverse = self._reverse.begin(function.parameters, leaves, function.dtype, function.device)
        return Linearization(self.graph, self.groups, reverse)

    def at(self, function: StateFunction) -> SampleJacobian:
        """The same graph at other parameters of the same model, checked as if it were new.

        Raises:
            StructureError: If the graph does not hold there.
        """
        if not self.function.same_constants(function):
            raise StructureError("the model's frozen parameters or buffers are others")
        twin = copy.copy(self)
        twin.function, twin._whole = function, None
        twin.vjps = twin.jvps = 0.0
        twin._check()
        return twin

    # Sizes: how many samples and probes are worked on at once.

    def _portions(self, probes: int) -> tuple[int, int]:
        """(samples, probes) of one step: as large as is quick, and never over the budget."""
        item = self.function.state.element_size()
        sample = item * (
            3 * self.function.forward_size.elements / self.batch + largest_features(self.graph, self.groups)
        )
        # Output gradients, general gradients, one group's work.
        pair = item * (
            3 * tap_elements(self.graph) + self.general_size + largest_work(self.graph, self.groups)
        )
        soft = min(self._budget, _quick_bytes(self.function.forward_size.operations))
        if self.batch * (sample + min(probes, _FEW_PROBES) * pair) <= soft:
            # The whole batch runs forward once and is kept; its parts would, each time.
            samples = self.batch
        else:
            samples = int(soft // (sample + min(probes, 64) * pair))
        if samples < 1:
            samples = int(self._budget // (sample + pair) > 0)
        samples = max(1, min(self.batch, samples))
        room = max(1, int((soft - samples * sample) // (samples * pair)))
        most = max(1, int((self._budget - samples * sample) // (samples * pair)))
        piece = max((len(piece.entries) for piece in self.graph.pieces), default=1)
        # A piece of the state that nearly fits is better not cut.
        return samples, min(piece, most) if room < piece <= 2 * room else room

    @property
    def general_size(self) -> int:
        """Parameters that take the general way."""
        return sum(self.function.parameters[name].numel() for name in self.graph.general)

    def gradient_flops(self) -> float:
        """Multiply-adds of the gradients' norms, for one sample and probe."""
        return gradient_flops(self.graph, self.groups)

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
        for name, reason in self.graph.why_general.items():
            lines.append(f"  {name} takes the general way: {reason}")
        return "\n".join(lines)

    # Norms.

    def squared_norms(self, z: Tensor) -> Tensor:
        """‖J_bᵀz_b‖² for every probe and sample, in float64: (k, n) → (k, B).

        Raises:
            MemoryError: If a single sample with a single probe does not fit.
        """
        return self._within_memory(lambda: self._squared_norms(z))

    def _squared_norms(self, z: Tensor) -> Tensor:
        blocks = self.axes.to_samples(z)
        out = torch.zeros(z.shape[0], self.batch, dtype=torch.float64, device=z.device)
        samples, probes = self._portions(z.shape[0])
        for part, linear in self.linearizations(samples):
            for start in range(0, z.shape[0], probes):
                rows = slice(start, min(start + probes, z.shape[0]))
                for factor in linear.pull(blocks[rows, part.start : part.stop]):
                    out[rows, part.start : part.stop] += factor.squared_norms()
        self.vjps += z.shape[0]
        return out

    def frobenius_squared(self, report: Callable[[int, int], None] | None = None) -> Tensor:
        """‖J_b‖²_F for every sample, exactly, in float64: shape (B,), by s one-hot probes.

        Outputs that a recurrence computes early are pulled back through the steps before them alone.

        Raises:
            MemoryError: If a single sample with a single probe does not fit.
        """
        return self._within_memory(lambda: self._frobenius_squared(report))

    def _frobenius_squared(self, report: Callable[[int, int], None] | None) -> Tensor:
        done = 0
        out = torch.zeros(self.batch, dtype=torch.float64, device=self.function.device)
        samples, probes = self._portions(self.outputs)
        for part, linear in self.linearizations(samples):
            for job in jobs(self.graph.pieces, probes):
                for factor in linear.pull_pieces(job):
                    out[part.start : part.stop] += factor.squared_norms().sum(0, dtype=torch.float64)
                done += sum(len(entries) for _, entries in job) * len(part)
                if report is not None:
                    report(done, self.outputs * self.batch)
        self.vjps += self.outputs
        return out

    def _within_memory(self, work: Callable[[], Tensor]) -> Tensor:
        """The work, in portions half as large each time that memory runs out."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._portions(self.outputs) == (1, 1):
                    raise MemoryError(
                        "a single sample with a single probe does not fit into memory; free some, "
                        "or use a model of lower precision"
                    ) from error
            # Outside the handler, so that the failed attempt's tensors are freed first.
            self._whole = None
            self._budget = min(self._budget, _quick_bytes(self.function.forward_size.operations)) // 2

    def _check(self) -> None:
        """By the quickest reverse pass that agrees with the model; the last resort must."""
        while True:
            try:
                at_once, _ = self._portions(1)
                compared = min(self.batch, max(2, at_once))
                return check_structure(self.function, self.axes, self.linearizations(at_once), compared)
            except Exception as error:
                fallback = self._reverse.given_up(_reason(error))
                if fallback is None or is_out_of_memory(error):
                    raise
            # An operation that is not what its name says: what autograd says of it holds.
            self._reverse, self._whole = fallback, None


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _quick_bytes(operations: int) -> int:
    """The size of a step that runs quickest: small for the caches, but large beside the calls' overhead.

    Measured: a residual network (67 operations) is quickest at 64 MiB, an unrolled recurrence (555
    operations) at 512 MiB.
    """
    return min(max(operations, 64), 512) << 20


# So many probes at a time are quick enough.
_FEW_PROBES = 4


def jobs(pieces: tuple[Piece, ...], probes: int) -> Iterator[list[tuple[int, Tensor]]]:
    """All entries of all pieces, so many at a time; the entries of one piece stay together if they fit."""
    job: list[tuple[int, Tensor]] = []
    room = probes
    for number, piece in enumerate(pieces):
        entries = piece.entries
        if len(entries) > room and job:
            yield job
            job, room = [], probes
        if len(entries) > probes:
            parts = -(-len(entries) // probes)
            for part in entries.chunk(parts):
                yield [(number, part)]
            continue
        if len(entries):
            job.append((number, entries))
            room -= len(entries)
    if job:
        yield job
