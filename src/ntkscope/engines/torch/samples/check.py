"""What tracing cannot know: a structure is used only if its values and gradients agree with the model's.

The gradient of the whole batch by the user's own module is known from when the state was evaluated
(:meth:`StateFunction.witness`). The samples' gradients must add up to it for every parameter, within
what rounding explains: within some units of the last digit of the whole gradient, which moves a
kernel's numbers by as little, or within what :mod:`rounding` measures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkscope.engines.torch.errors import StructureError, no_structure
from ntkscope.engines.torch.graph.groups import Group
from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.lengths import distance, furthest, joint_distance, joint_length, length
from ntkscope.engines.torch.samples.axes import SampleAxes
from ntkscope.engines.torch.samples.double import agrees_in_double
from ntkscope.engines.torch.samples.linearization import Linearization
from ntkscope.engines.torch.samples.rounding import is_low, lowest_epsilon
from ntkscope.engines.torch.samples.sums import BatchGradient, positions_of
from ntkscope.engines.torch.state import StateFunction

__all__ = ["Candidate", "GradientsError", "ValuesError", "check_structure"]

# What needs no measurement, in units of the last digit.
_UNITS = 64
# How far measured rounding may be exceeded, and that of a sum of many terms, which grows as their root.
_TIMES = 4.0


class ValuesError(StructureError):
    """The graph does not give a sample's state.

    Args:
        message: Why.
        sample: One for which another graph may hold; ``None`` where the samples are coupled.
    """

    def __init__(self, message: str, sample: int | None = None) -> None:
        super().__init__(message)
        self.sample = sample


class GradientsError(StructureError):
    """The gradients that the graph gives are not the model's."""


@dataclass(frozen=True)
class Candidate:
    """A structure to be checked.

    Attributes:
        function: The model.
        axes: Where its samples lie.
        graph: The state of one sample.
        groups: Its parameters that rules know.
        linearize: The graph of some samples, run forward.
        with_noise: The same, off by rounding.
    """

    function: StateFunction
    axes: SampleAxes
    graph: Graph
    groups: Sequence[Group]
    linearize: Callable[[range], Linearization]
    with_noise: Callable[[range], Linearization]


@dataclass(frozen=True)
class _Evaluation:
    """The states of some samples, (B, s), and the gradient of their probe by parameter."""

    states: Tensor
    gradients: Mapping[str, Tensor]


def check_structure(candidate: Candidate, parts: Iterable[tuple[range, Linearization]]) -> None:
    """Every sample on its own must give the model's state, and gradients that add up to the model's.

    One reverse pass for each part; once more forward and back for the first part where rounding must
    be measured.

    Args:
        candidate: The structure.
        parts: The batch in parts, each run forward on its own.

    Raises:
        ValuesError: If a state differs, or the model does not run sample by sample.
        GradientsError: If the gradients differ.
    """
    with no_structure("the model cannot run sample by sample"):
        _Check(candidate).run(parts)


class _Check:
    """One check: what is found, what is expected, and how far they may lie apart."""

    def __init__(self, candidate: Candidate) -> None:
        function, axes = candidate.function, candidate.axes
        self._candidate = candidate
        self._epsilon = torch.finfo(function.dtype).eps
        witness = function.witness()
        self._probe = axes.to_samples(witness.probe.reshape(1, -1))
        self._states = axes.to_samples(function.state.reshape(1, -1))[0].flatten(1)
        self._gradients = {
            name: torch.zeros(value.numel(), dtype=torch.float64, device=value.device)
            if (gradient := witness.gradients[name]) is None
            else gradient.detach().reshape(-1)
            for name, value in function.parameters.items()
        }
        self._whole = joint_length(list(self._gradients.values()))
        self._units = (1 if is_low(self._epsilon) else _UNITS) * self._epsilon

    # What most checks do without.

    @functools.cached_property
    def _lowest(self) -> float:
        return lowest_epsilon(self._candidate.graph, self._candidate.function.dtype)

    @functools.cached_property
    def _sizes(self) -> dict[str, float]:
        return {name: length(gradient) for name, gradient in self._gradients.items()}

    @functools.cached_property
    def _summed(self) -> dict[str, float]:
        """Rounding of sums: in float32 at least, term by term in some of torch's backward passes."""
        candidate, accumulated = self._candidate, min(self._epsilon, torch.finfo(torch.float32).eps)
        return {
            name: _TIMES * accumulated * math.sqrt(candidate.axes.batch * positions) * self._sizes[name]
            for name, positions in positions_of(candidate.graph, candidate.groups).items()
        }

    def run(self, parts: Iterable[tuple[range, Linearization]]) -> None:
        total = BatchGradient(self._candidate.graph, self._candidate.function.parameters)
        states: list[Tensor] = []
        first: tuple[range, _Evaluation] | None = None
        for part, linear in parts:
            if len(states) == 1:
                # Kept apart before others are added to it.
                first = range(len(states[0])), _Evaluation(states[0], total.by_parameter())
            states.append(self._add(total, linear, part))
        found = _Evaluation(torch.cat(states), total.by_parameter())
        if self._agrees_to_the_digit(found):
            return
        part, exact = first or (range(len(found.states)), found)
        noisy = self._evaluate(self._candidate.with_noise(part), part)
        self._compare_states(found.states.double(), exact.states.double(), noisy.states.double())
        self._compare_gradients(found.gradients, exact.gradients, noisy.gradients, len(part))

    def _add(self, total: BatchGradient, linear: Linearization, part: range) -> Tensor:
        """Adds the gradients of a part, and gives its states."""
        total.add(linear.pull(self._probe[:, part.start : part.stop]))
        return linear.state.detach().reshape(len(part), -1)

    def _evaluate(self, linear: Linearization, part: range) -> _Evaluation:
        total = BatchGradient(self._candidate.graph, self._candidate.function.parameters)
        states = self._add(total, linear, part)
        return _Evaluation(states, total.by_parameter())

    def _agrees_to_the_digit(self, found: _Evaluation) -> bool:
        if not furthest(found.states, self._states) <= self._units * furthest(self._states):
            return False
        gradients = [found.gradients[name] for name in self._gradients]
        if joint_distance(gradients, list(self._gradients.values())) <= self._units * self._whole:
            # So is every parameter's.
            return True
        return all(
            distance(found.gradients[name], own) <= self._units * self._whole + self._summed[name]
            for name, own in self._gradients.items()
        )

    # States.

    def _compare_states(self, found: Tensor, exact: Tensor, noisy: Tensor) -> None:
        apart, noise = (found - self._states).abs(), (noisy - exact).abs()
        floor = self._units * furthest(self._states)
        at_most = _TIMES * float(noise.max()) + floor
        # By output, over all samples: coupling moves many entries by less than rounding moves one.
        of_output = _TIMES * torch.maximum(_rms(noise), _rms(exact) * _ratio(noise, exact)) + floor
        if float(apart.max()) <= at_most and bool((_rms(apart) <= of_output).all()):
            return
        sample = int(apart.max(1).values.nan_to_num(torch.inf).argmax())
        difference = float(apart[sample].max())
        alone = self._alone(sample)
        if float((alone - self._states[sample]).abs().max()) <= difference / 2:
            raise ValuesError(
                "what the model computes depends on the values of its inputs (a branch, a mask that is "
                f"dropped): as recorded for one sample, another one's state differs by {difference:.2g}",
                sample,
            )
        raise ValuesError(
            "the state of a sample depends on the other samples of the batch (batch norm in training "
            f"mode, a contrastive head?): alone and in the batch it differs by {difference:.2g}, of which "
            f"rounding explains {at_most:.2g}"
        )

    def _alone(self, sample: int) -> Tensor:
        """The state of one sample by the model."""
        function, axes = self._candidate.function, self._candidate.axes
        leaves = [leaf[0] for leaf in axes.split(function.inputs, range(sample, sample + 1))]
        return axes.of_one_sample(function, function.parameters, leaves).detach().reshape(-1).double()

    # Gradients.

    def _compare_gradients(
        self,
        found: Mapping[str, Tensor],
        exact: Mapping[str, Tensor],
        noisy: Mapping[str, Tensor],
        measured: int,
    ) -> None:
        noise = {name: distance(noisy[name], own) for name, own in exact.items()}
        sizes = {name: length(own) for name, own in exact.items()}
        whole = math.sqrt(sum(size**2 for size in sizes.values()))
        ratio = math.sqrt(sum(size**2 for size in noise.values())) / whole if whole else 0.0
        scale = math.sqrt(self._candidate.axes.batch / measured)
        # Where rounding alone would be this much, nothing is shown.
        limit = min(0.1, 4 * self._lowest**0.5) * self._whole
        for name, own in self._gradients.items():
            apart = distance(found[name], own)
            stored = self._epsilon * math.sqrt(self._uses(name)) * self._sizes[name] + self._summed[name]
            tolerance = _TIMES * scale * max(noise[name], ratio * sizes[name]) + stored
            if not apart <= max(self._units * self._whole, min(tolerance, limit)):
                if self._agrees_in_double(measured):
                    return
                raise GradientsError(
                    "the gradients of single samples do not add up to the gradient of the batch: "
                    f"for {name} they are {apart:.2g} off in {self._sizes[name]:.2g}, of which rounding "
                    f"explains {tolerance:.2g}; {self._cause(name, apart / max(self._sizes[name], 1e-300))}"
                )

    def _agrees_in_double(self, samples: int) -> bool:
        """Rounding on either side of a kink (a ReLU, a maximum) moves a gradient by more than rounding."""
        candidate = self._candidate
        return not is_low(self._lowest) and agrees_in_double(
            candidate.function, candidate.axes, candidate.graph, samples
        )

    def _uses(self, name: str) -> int:
        graph = self._candidate.graph
        return max(
            1, sum(graph.blocks[block] == name for use in graph.uses for block in use.parameters.values())
        )

    def _cause(self, name: str, share: float) -> str:
        """Whether the first sample's own gradient is right, which tells coupling from a wrong graph."""
        candidate = self._candidate
        one = range(1)
        found = self._evaluate(candidate.linearize(one), one).gradients[name]
        expected = self._gradient_alone(name)
        if float((found - expected).norm()) <= share / 4 * max(float(expected.norm()), float(found.norm())):
            return "samples are coupled"
        own = ", ".join(candidate.graph.own_backward)
        if own:
            return f"{own} has its own backward pass, which is not what its forward pass gives"
        return "an operation or a tensor has its own backward pass (a hook), or a rule of add_rule is wrong"

    def _gradient_alone(self, name: str) -> Tensor:
        """The gradient of the first sample's probe by the model."""
        function, axes = self._candidate.function, self._candidate.axes
        leaves = {key: value.detach().clone().requires_grad_() for key, value in function.parameters.items()}
        sample = [leaf[0] for leaf in axes.split(function.inputs, range(1))]
        with torch.enable_grad(), function.operations():
            state = axes.of_one_sample(function, leaves, sample)
            if not state.requires_grad:
                return torch.zeros_like(self._gradients[name])
            (gradient,) = torch.autograd.grad(
                state, [leaves[name]], self._probe[0, 0].reshape(state.shape), materialize_grads=True
            )
        return gradient.detach().reshape(-1).double()


def _rms(values: Tensor) -> Tensor:
    """By output, over samples."""
    return values.square().mean(0).sqrt()


def _ratio(noise: Tensor, exact: Tensor) -> float:
    """How large noise is beside the values, all outputs together."""
    size = float(exact.norm())
    return float(noise.norm()) / size if size else 0.0
