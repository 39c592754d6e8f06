"""The Jacobian of every sample on its own: norms, rows and factors of J_b, by layer where rules exist."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ntkscope.jacobian.chunks import DEFAULT_BUDGET
from ntkscope.jacobian.factors import (
    Direct,
    Factor,
    Outer,
    add_rows,
    concat_positions,
    square_sum,
    stack_features,
)
from ntkscope.jacobian.graph import Graph, Piece, Use, trace
from ntkscope.jacobian.meter import is_out_of_memory
from ntkscope.jacobian.operations import CHECK_SEED
from ntkscope.jacobian.rules import Arguments
from ntkscope.jacobian.samples import BatchDim, SampleAxes, StructureError
from ntkscope.jacobian.state import StateFunction

__all__ = ["Linearization", "SampleJacobian"]


@dataclass(frozen=True)
class _Group:
    """Parameters whose gradient is computed as one factor: a block, or a weight with its bias."""

    blocks: tuple[str, ...]
    uses: tuple[tuple[int, tuple[str, ...]], ...]
    joint: bool
    stackable: bool = False


class Linearization:
    """The graph of some samples at fixed parameters, run forward once, ready for many backward passes."""

    def __init__(self, owner: SampleJacobian, samples: range) -> None:
        self._owner = owner
        graph, function = owner.graph, owner.function
        size = len(samples)
        leaves = owner.axes.split(function.inputs, samples)
        values = [function.parameters[name] for name in graph.names]
        self._general = {
            name: function.parameters[name].expand(size, *function.parameters[name].shape).requires_grad_()
            for name in graph.general
        }
        zero = torch.zeros((), dtype=function.dtype, device=function.device)
        self._taps = [zero.expand(size, *use.tap_shape).requires_grad_() for use in graph.uses]
        inputs = [self._general.get(name, value) for name, value in zip(graph.names, values, strict=True)]
        axes = [0 if name in self._general else None for name in graph.names]
        axes += [0] * (len(leaves) + len(self._taps))
        with torch.enable_grad(), function.operations():
            state, pieces, captured = vmap(graph.module, in_dims=tuple(axes))(*inputs, *leaves, *self._taps)
        self.state: Tensor = state
        self._pieces: tuple[Tensor, ...] = pieces
        self._captured = [value.detach() for value in captured]
        self._stacks: dict[_Group, dict[str, Tensor]] = {}

    def pull(self, z: Tensor) -> list[Factor]:
        """The gradients J_bᵀz_b, one factor a parameter group: z has shape (k, B, *state of one sample)."""
        return self._pull([self.state], [z.reshape(z.shape[0], *self.state.shape)])

    def pull_pieces(self, pieces: list[tuple[int, Tensor]]) -> list[Factor]:
        """The gradients of single outputs, the same for every sample.

        Args:
            pieces: (number of the piece, its entries) for each piece; one probe an entry.
        """
        count = sum(len(entries) for _, entries in pieces)
        targets, probes = [], []
        start = 0
        for number, entries in pieces:
            target = self._pieces[number]
            probe = target.new_zeros(count, math.prod(target.shape[1:]))
            probe[torch.arange(start, start + len(entries)), entries] = 1
            start += len(entries)
            if target.requires_grad:
                targets.append(target)
                shape = (count, 1, *target.shape[1:])
                probes.append(probe.reshape(shape).expand(count, *target.shape))
        return self._pull(targets, probes)

    def _pull(self, targets: list[Tensor], probes: list[Tensor]) -> list[Factor]:
        leaves = [*self._taps, *self._general.values()]
        if not targets or not leaves or not any(target.requires_grad for target in targets):
            return []
        # One probe alone needs no batch, whose overhead is felt where operations are small.
        batched = len(probes[0]) > 1
        with self._owner.function.operations():
            gradients = torch.autograd.grad(
                targets,
                leaves,
                probes if batched else [probe[0] for probe in probes],
                is_grads_batched=batched,
                retain_graph=True,
                allow_unused=True,
            )
        if not batched:
            gradients = tuple(None if g is None else g.unsqueeze(0) for g in gradients)
        deltas, general = gradients[: len(self._taps)], gradients[len(self._taps) :]
        factors: list[Factor] = [Direct(g.reshape(*g.shape[:2], -1)) for g in general if g is not None]
        for group in self._owner.groups:
            factor = self._factor(group, deltas)
            if factor is not None:
                factors.append(factor)
        return factors

    def _factor(self, group: _Group, deltas: tuple[Tensor | None, ...]) -> Factor | None:
        present = [index for index, (number, _) in enumerate(group.uses) if deltas[number] is not None]
        if not present:
            return None
        if group.stackable:
            return self._stacked(group, present, deltas)
        parts = []
        for index in present:
            number, roles = group.uses[index]
            use, delta = self._owner.graph.uses[number], deltas[number]
            assert delta is not None
            captured = {name: self._captured[place] for name, place in use.captured.items()}
            parts.append(_of_use(use, use.constants | captured, delta, roles))
        outer = [part for part in parts if isinstance(part, Outer)]
        if len(outer) == len(parts) and len({part.layout for part in outer}) == 1:
            return concat_positions(outer)
        return add_rows(parts)

    def _stacked(self, group: _Group, present: list[int], deltas: tuple[Tensor | None, ...]) -> Factor:
        """The gradient by several uses as by one, its positions along a new axis after the samples'."""
        uses = [self._owner.graph.uses[number] for number, _ in group.uses]
        if group not in self._stacks:
            self._stacks[group] = {
                name: torch.stack([self._captured[use.captured[name]] for use in uses], dim=1)
                for name in uses[0].captured
            }
        # Early outputs of a recurrence are reached by the first uses alone.
        first = present == list(range(len(present)))
        chosen = torch.tensor(present)
        captured = {
            name: values[:, : len(present)] if first else values[:, chosen]
            for name, values in self._stacks[group].items()
        }
        delta = torch.stack(
            [d for index in present if (d := deltas[group.uses[index][0]]) is not None], dim=2
        )
        return _of_use(uses[0], uses[0].constants | captured, delta, group.uses[0][1])


def _of_use(use: Use, arguments: Arguments, delta: Tensor, roles: tuple[str, ...]) -> Factor:
    """The gradient of the parameters that have these roles in an operation."""
    each = [use.rule.factor(arguments, delta, role) for role in roles]
    outers = [factor for factor in each if isinstance(factor, Outer)]
    return stack_features(outers) if len(each) > 1 else each[0]


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
        self.groups = _groups(self.graph)
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
            self._whole = self._whole or Linearization(self, whole)
            yield whole, self._whole
            return
        for start in range(0, self.batch, samples):
            part = range(start, min(start + samples, self.batch))
            yield part, Linearization(self, part)

    # Sizes: how many samples and probes are worked on at once.

    def _portions(self, probes: int) -> tuple[int, int]:
        """(samples, probes) of one step: as large as is quick, and never over the budget."""
        item = self.function.state.element_size()
        sample = item * (3 * self.function.forward_size.elements / self.batch + self._largest_features())
        pair = item * self._pair_elements()
        soft = min(self._budget, _quick_bytes(self.function.forward_size.operations))
        samples = int(soft // (sample + min(probes, 64) * pair))
        if samples < 1:
            samples = int(self._budget // (sample + pair) > 0)
        samples = max(1, min(self.batch, samples))
        room = max(1, int((soft - samples * sample) // (samples * pair)))
        most = max(1, int((self._budget - samples * sample) // (samples * pair)))
        piece = max((len(piece.entries) for piece in self.graph.pieces), default=1)
        # A piece of the state that nearly fits is better not cut.
        return samples, min(piece, most) if room < piece <= 2 * room else room

    def _pair_elements(self) -> int:
        """Numbers held for one sample and probe: output gradients, general gradients, one group's work."""
        taps = sum(math.prod(use.tap_shape) for use in self.graph.uses)
        largest = max((self._group_elements(group) for group in self.groups), default=0)
        return 3 * taps + self.general_size + largest

    def _group_elements(self, group: _Group) -> int:
        outputs, size, positions = self._group_shape(group)
        return int(min(size, positions**2) + positions * outputs)

    def _group_shape(self, group: _Group) -> tuple[int, int, float]:
        """(outputs, parameters, positions) of a group."""
        shapes = [self._block_shape(number, roles[0]) for number, roles in group.uses]
        outputs, size = max(shape[0] for shape in shapes), max(math.prod(shape) for shape in shapes)
        taps = sum(math.prod(self.graph.uses[number].tap_shape) for number, _ in group.uses)
        return outputs, size, taps / outputs

    def _largest_features(self) -> int:
        """Numbers in the features of one sample that a group needs: inputs, or patches of them."""
        shapes = [self._group_shape(group) for group in self.groups]
        return int(max((2 * positions * size / outputs for outputs, size, positions in shapes), default=0))

    @property
    def general_size(self) -> int:
        """Parameters that take the general way."""
        return sum(self.function.parameters[name].numel() for name in self.graph.general)

    def gradient_flops(self) -> float:
        """Multiply-adds of the gradients' norms, for one sample and probe."""
        shapes = [self._group_shape(group) for group in self.groups]
        return sum(min(positions * size, positions**2 * outputs) for outputs, size, positions in shapes)

    def used_parameters(self) -> int:
        """Parameters in all operations together: one that is used twice counts twice."""
        blocks = sum(
            math.prod(self._block_shape(number, role))
            for number, use in enumerate(self.graph.uses)
            for role in use.parameters
        )
        return blocks + self.general_size

    def _block_shape(self, use: int, role: str) -> tuple[int, ...]:
        """Shape of the parameter in this role, as the operation sees it."""
        value = self.graph.uses[use].constants[role]
        return tuple(value.shape) or (1,)

    def describe(self) -> str:
        """What is known of the model, in words."""
        lines = [
            f"{self.batch:,} independent samples with {self.outputs:,} outputs each; "
            f"{len(self.graph.uses):,} uses of parameters are known by layer"
        ]
        if len(self.graph.pieces) > 1:
            lines[0] += f", the state comes in {len(self.graph.pieces):,} pieces"
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

    # What tracing cannot know: the structure is used only if values and gradients agree with the model's.

    def _check(self) -> None:
        """Every sample on its own must give the model's state, and gradients that sum to autodiff's."""
        at_once, _ = self._portions(1)
        checked = min(self.batch, max(2, at_once))
        try:
            probe, expected = self._gradient_of_batch(checked)
            sums: list[Tensor] = []
            for part, linear in self.linearizations(at_once):
                self._check_values(linear.state, part)
                if part.start < checked:
                    parts = [factor.summed() for factor in linear.pull(probe[:, part.start : part.stop])]
                    sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            line = (str(error).splitlines() or [""])[0]
            raise StructureError(f"the model cannot run sample by sample ({line})") from error
        found = sum(float(square_sum(total)) for total in sums)
        if not abs(found - expected) <= _GRADIENT_TOLERANCE[self.function.dtype] * max(found, expected):
            raise StructureError(
                "the gradients of single samples do not add up to the gradient of the batch: samples are "
                "coupled, an operation has its own backward pass, or a rule of add_rule is wrong; "
                f"squared norms {found:.6g} and {expected:.6g}"
            )

    def _check_values(self, state: Tensor, part: range) -> None:
        expected = self.axes.to_samples(self.function.state.reshape(1, -1))[0]
        dtype = self.function.dtype
        tolerance = _TOLERANCE[dtype] * max(float(expected.abs().max()), torch.finfo(dtype).tiny)
        found = state.detach().reshape(len(part), *self.axes.state_shape)
        difference = float((found - expected[part.start : part.stop]).abs().max())
        if not difference <= tolerance:
            raise StructureError(
                "the state of a sample depends on the other samples of the batch (batch norm in "
                "training mode, a contrastive head?), or its computation depends on the values of "
                f"the inputs: alone and in the batch it differs by {difference:.2g}"
            )

    def _gradient_of_batch(self, samples: int) -> tuple[Tensor, float]:
        """A probe for the first samples, (1, samples, *state of one), and ‖Jᵀz‖² by autodiff."""
        function = self.function
        axes, inputs = self.axes.first(function.inputs, samples)
        leaves = {name: value.clone().requires_grad_() for name, value in function.parameters.items()}
        with torch.enable_grad(), function.operations():
            state = function.replace_inputs(inputs)(leaves)
            z = torch.randn(
                state.shape, generator=torch.Generator().manual_seed(CHECK_SEED), dtype=torch.float64
            )
            z = z.to(state.device, state.dtype)
            gradients = (
                torch.autograd.grad(state, list(leaves.values()), z, allow_unused=True)
                if state.requires_grad
                else ()
            )
        expected = sum(float(square_sum(gradient)) for gradient in gradients if gradient is not None)
        return axes.to_samples(z.reshape(1, -1)), expected


def _quick_bytes(operations: int) -> int:
    """The size of a step that runs quickest: small for the caches, but large beside the calls' overhead.

    Measured: a residual network (67 operations) is quickest at 64 MiB, an unrolled recurrence (555
    operations) at 512 MiB.
    """
    return min(max(operations, 64), 512) << 20


# Of values, relative to the largest; of squared norms of gradients, where a kink may fall on either side.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 4e-1}


def _groups(graph: Graph) -> list[_Group]:
    """Blocks with the same joint uses (a weight and its bias) together, all others alone."""
    uses: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, use in enumerate(graph.uses):
        for role, block in use.parameters.items():
            uses[block].append((number, role))
    together: dict[Any, list[str]] = defaultdict(list)
    for block, own in uses.items():
        joint = all(graph.uses[number].rule.joint for number, _ in own)
        numbers = tuple(number for number, _ in own)
        together[numbers if joint and len(set(numbers)) == len(numbers) else block].append(block)
    groups = []
    for key, blocks in together.items():
        own_uses: dict[int, list[str]] = defaultdict(list)
        if isinstance(key, tuple):
            for block in blocks:
                for number, role in uses[block]:
                    own_uses[number].append(role)
            listed = tuple((number, tuple(roles)) for number, roles in own_uses.items())
        else:
            listed = tuple((number, (role,)) for number, role in uses[key])
        groups.append(_Group(tuple(blocks), listed, isinstance(key, tuple), _stackable(graph, listed)))
    return groups


def _stackable(graph: Graph, uses: tuple[tuple[int, tuple[str, ...]], ...]) -> bool:
    """Whether the uses are the same operation on the same parameters, at different positions."""
    (first, roles), *others = uses
    one = graph.uses[first]

    def alike(number: int) -> bool:
        use = graph.uses[number]
        return (use.rule, use.tap_shape, use.parameters, use.constants.keys()) == (
            one.rule, one.tap_shape, one.parameters, one.constants.keys(),
        )  # fmt: skip

    return (
        bool(others) and one.rule.positions and all(alike(number) and own == roles for number, own in others)
    )


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
