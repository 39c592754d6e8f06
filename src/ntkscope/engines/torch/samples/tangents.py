"""Forward products of every sample with parameter directions of its own: ‖J_b u_b‖²."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vmap

from ntkscope.engines.torch.errors import StructureError, no_structure
from ntkscope.engines.torch.memory import samples_and_probes
from ntkscope.engines.torch.modes import CHECK_SEED, load_forward_mode
from ntkscope.engines.torch.samples.jacobian import SampleJacobian
from ntkscope.engines.torch.samples.rounding import lowest_epsilon

__all__ = ["SampleTangents"]


class SampleTangents:
    """The forward half of a :class:`SampleJacobian`.

    One forward pass a chunk carries the tangents of all its probes. A sample's tangent is as long
    as the parameters, so a probe holds B · p numbers: worth it where samples have long states.

    Args:
        jacobian: The samples and their graph.

    Raises:
        StructureError: If an operation has no forward mode, or one that is wrong.
    """

    def __init__(self, jacobian: SampleJacobian) -> None:
        self._jacobian = jacobian
        function, graph = jacobian.function, jacobian.graph
        load_forward_mode()
        self._names = [name for name in graph.names if not graph.is_derived(name)]
        self._names += graph.derivation.parameters if graph.derivation else ()
        self._values = [function.parameters[name] for name in self._names]
        self.size = sum(value.numel() for value in self._values)
        self._taps = [
            torch.zeros((), dtype=use.dtype, device=function.device).expand(use.tap_shape)
            for use in graph.uses
        ]
        forward = function.forward_size.elements / jacobian.batch
        each = function.state.element_size() * (2 * self.size + 3 * forward)
        self._samples, self._probes = samples_and_probes(jacobian.batch, each, jacobian.budget)
        self._check()

    def squared_norms(self, count: int, directions: Callable[[range, range], Tensor]) -> Tensor:
        """‖J_b u_b‖² for every probe and sample, in float64: shape (count, B).

        Args:
            count: Probes.
            directions: The tangents of some probes and samples, shape (k, B, p), when they are needed.
        """
        jacobian = self._jacobian
        out = torch.zeros(count, jacobian.batch, dtype=torch.float64, device=jacobian.function.device)
        for probes, part, state in self._pushed(count, directions):
            flat = state.flatten(2).double()
            out[probes.start : probes.stop, part.start : part.stop] = (flat * flat).sum(2)
        return out

    def states(self, count: int, directions: Callable[[range, range], Tensor]) -> Tensor:
        """J_b u_b for every probe and sample: shape (count, B, *state of one sample).

        Args:
            count: Probes.
            directions: As in :meth:`squared_norms`.
        """
        function, axes = self._jacobian.function, self._jacobian.axes
        out = function.state.new_empty(count, axes.batch, *axes.state_shape)
        for probes, part, state in self._pushed(count, directions):
            own = state.reshape(len(probes), len(part), *axes.state_shape)
            out[probes.start : probes.stop, part.start : part.stop] = own
        return out

    def _pushed(
        self, count: int, directions: Callable[[range, range], Tensor]
    ) -> Iterator[tuple[range, range, Tensor]]:
        """Probes, samples, and J_b u_b of these, part by part."""
        jacobian = self._jacobian
        for first in range(0, jacobian.batch, self._samples):
            part = range(first, min(first + self._samples, jacobian.batch))
            leaves = jacobian.axes.split(jacobian.function.inputs, part)
            for start in range(0, count, self._probes):
                probes = range(start, min(start + self._probes, count))
                yield probes, part, self._push(leaves, directions(probes, part))

    def _push(self, leaves: Sequence[Tensor], directions: Tensor) -> Tensor:
        """J_b u_b, shape (k, B, *state of one sample)."""

        def of_one(direction: Tensor, *sample: Tensor) -> Tensor:
            tangents = self._split(direction)
            return jvp(lambda *values: self._state(values, sample), tuple(self._values), tangents)[1]

        of_all = vmap(of_one, in_dims=(0, *[0] * len(leaves)))
        over_probes = vmap(of_all, in_dims=(0, *[None] * len(leaves)))
        with self._jacobian.function.operations():
            return over_probes(directions, *leaves)

    def _state(self, values: Sequence[Tensor], sample: Sequence[Tensor]) -> Tensor:
        graph = self._jacobian.graph
        weights = graph.weights(dict(zip(self._names, values, strict=True)))
        state: Tensor = graph.module(*(weights[name] for name in graph.names), *sample, *self._taps)[0]
        return state

    def _split(self, direction: Tensor) -> tuple[Tensor, ...]:
        pieces = direction.split([value.numel() for value in self._values])
        return tuple(p.reshape(v.shape).to(v.dtype) for p, v in zip(pieces, self._values, strict=True))

    def _check(self) -> None:
        """Forward mode must give what differentiating the reverse pass gives, entry by entry of all samples.

        The reverse pass itself was compared with the model's own.
        """
        jacobian = self._jacobian
        function, batch = jacobian.function, jacobian.batch
        generator = torch.Generator().manual_seed(CHECK_SEED)
        u = torch.randn(self.size, generator=generator, dtype=torch.float64)
        u = u.to(function.device, function.dtype)
        differences, sizes = [], []
        for first in range(0, batch, self._samples):
            part = range(first, min(first + self._samples, batch))
            leaves = jacobian.axes.split(function.inputs, part)
            with no_structure("an operation of the model has no forward mode"):
                forward = self._push(leaves, u.expand(1, len(part), -1))[0]
            with no_structure("the model's forward mode cannot be checked"):
                expected = self._push_by_reverse(leaves, u)
            differences.append((forward.double() - expected.double()).abs().max())
            sizes.append(expected.double().abs().max())
        epsilon = lowest_epsilon(jacobian.graph, function.dtype)
        tolerance = min(epsilon**0.5, 1e6 * epsilon) * torch.stack(sizes).max()
        # A maximum of tensors is not a number where one of them is not.
        if not bool(torch.stack(differences).max() <= tolerance):
            raise StructureError("forward mode of the model is not the transpose of its reverse mode")

    def _push_by_reverse(self, leaves: Sequence[Tensor], u: Tensor) -> Tensor:
        """J_b u for every sample, as the derivative of ⟨Jᵀz, u⟩ by z."""
        values = [value.detach().clone().requires_grad_() for value in self._values]
        of_all = vmap(lambda *sample: self._state(values, sample))
        with torch.enable_grad(), self._jacobian.function.operations():
            state = of_all(*leaves)
            if not state.requires_grad:
                return torch.zeros_like(state)
            generator = torch.Generator().manual_seed(CHECK_SEED)
            z = torch.randn(state.shape, generator=generator, dtype=torch.float64)
            z = z.to(state.device, state.dtype).requires_grad_()
            gradients = torch.autograd.grad(state, values, z, create_graph=True, materialize_grads=True)
            along = sum((g * d).sum() for g, d in zip(gradients, self._split(u), strict=True))
            if not isinstance(along, Tensor) or not along.requires_grad:
                return torch.zeros_like(state)
            (pushed,) = torch.autograd.grad(along, z, materialize_grads=True)
        return pushed.detach()
