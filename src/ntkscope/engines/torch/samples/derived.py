"""From the gradients of derived weights W = f(θ) to those of the parameters: (∂f/∂θ)ᵀ, factor by factor.

f has no batch. Where an operation of it is linear in a way that keeps outer products (products of
matrices, scales, transposes), nothing is formed; else the gradients of the samples are formed and go
back through the operation together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.gradients.exponential import SkewExponential, skew_exponential
from ntkscope.engines.torch.gradients.factors import Direct, Factor
from ntkscope.engines.torch.gradients.pulled import (
    outer_with_vector,
    reduced,
    scaled,
    spread,
    through_product,
    total,
    turned,
)
from ntkscope.engines.torch.graph.derived import Derivation
from ntkscope.engines.torch.graph.opened import Graph
from ntkscope.engines.torch.graph.operators import (
    OPERATORS,
    Trait,
    arguments_of,
    casts_by_name,
    is_entrywise,
    is_pointwise,
    is_transpose,
    matrix_product,
    name_of,
    reduced_axes,
)
from ntkscope.engines.torch.modes import differentiable_operations
from ntkscope.engines.torch.reverse.autograd import batched_gradients

__all__ = ["DerivedWeights", "derived_weights"]


class DerivedWeights:
    """The weights that a model derives from its parameters, at fixed parameters.

    Args:
        derivation: How they are derived.
        parameters: All of the model's, by name.

    Attributes:
        values: The weights by name.
    """

    def __init__(self, derivation: Derivation, parameters: Mapping[str, Tensor]) -> None:
        nodes = list(derivation.graph.nodes)
        holders = [node for node in nodes if node.op == "placeholder"]
        self._parameters = dict(zip(derivation.parameters, holders, strict=True))
        values: dict[fx.Node, Any] = {}
        self._steps: list[_Step] = []
        with torch.no_grad(), differentiable_operations():
            for name, node in self._parameters.items():
                values[node] = parameters[name].detach()
            carriers = set(holders)
            for node in nodes:
                if node.op == "get_attr":
                    values[node] = getattr(derivation.constants, str(node.target))
                elif node.op == "call_function":
                    step = _Step(node, values, carriers)
                    values[node] = step.value
                    if step.inputs:
                        carriers.add(node)
                        self._steps.append(step)
        (self._weights,) = nodes[-1].args
        self.values: dict[str, Tensor] = {
            name: values[node] for name, node in zip(derivation.weights, self._weights, strict=True)
        }
        self._names = derivation.weights

    @property
    def formed_size(self) -> int:
        """Numbers that are formed of a sample's gradient at most, where operations need it so."""
        return max((step.formed_size for step in self._steps), default=0)

    def pull(self, gradients: Mapping[str, Factor]) -> dict[str, Factor]:
        """The gradients of the parameters from those of some weights, both by name."""
        found: dict[fx.Node, list[Factor]] = defaultdict(list)
        for name, node in zip(self._names, self._weights, strict=True):
            if name in gradients:
                found[node].append(gradients[name])
        with differentiable_operations():
            for step in reversed(self._steps):
                own = found.pop(step.node, None)
                if own is not None:
                    for node, factor in step.pull(total(own)):
                        found[node].append(factor)
        return {name: total(found[node]) for name, node in self._parameters.items() if node in found}


def derived_weights(graph: Graph, parameters: Mapping[str, Tensor]) -> DerivedWeights | None:
    """The weights that a graph's model derives from its parameters; ``None`` if it derives none."""
    return None if graph.derivation is None else DerivedWeights(graph.derivation, parameters)


class _Step:
    """One operation of a derivation.

    Args:
        node: It.
        values: Those of the nodes before it.
        carriers: The nodes through which gradients flow to parameters.

    Attributes:
        value: Its result.
        inputs: What of its arguments leads to parameters.
    """

    def __init__(self, node: fx.Node, values: Mapping[fx.Node, Any], carriers: set[fx.Node]) -> None:
        self.node = node
        self._values = values
        self._slopes: dict[fx.Node, Tensor] = {}
        self._together = True
        self._exponential: tuple[SkewExponential | None] | None = None
        # A part of a result is taken together with the operation that gave it.
        first = node.args[0] if name_of(node) == "getitem" else node
        assert isinstance(first, fx.Node)
        self._calls = [node] if first is node else [first, node]
        sources = [source for source in dict.fromkeys(first.all_input_nodes) if source in carriers]
        self._leaves = {source: values[source].detach().requires_grad_() for source in sources}
        self._result = self._run(self._leaves)
        self.value = pytree.tree_map_only(Tensor, torch.Tensor.detach, self._result)
        reached = isinstance(self._result, Tensor) and self._result.requires_grad
        self.inputs = sources if reached else []

    def _run(self, leaves: Mapping[fx.Node, Tensor]) -> Any:
        known: dict[fx.Node, Any] = {}
        with torch.enable_grad():
            for call in self._calls:
                args, kwargs = fx.map_arg(
                    (call.args, call.kwargs),
                    lambda node: known[node] if node in known else leaves.get(node, self._values[node]),
                )
                known[call] = call.target(*args, **kwargs)  # type: ignore[operator]
        return known[self.node]

    @property
    def formed_size(self) -> int:
        """Numbers of the gradients before and after, if none of the ways that keep factors is made for it."""
        traits = OPERATORS.get(name_of(self.node), Trait(0))
        axes = any(reduced_axes(self.node, leaf.dim()) for leaf in self._leaves.values())
        if traits & (Trait.RESHAPES | Trait.PERMUTES) or is_entrywise(self.node) or axes:
            return 0
        if matrix_product(self.node) or name_of(self.node) == "linalg_solve" or casts_by_name(self.node):
            return 0
        return int(self.value.numel()) + sum(leaf.numel() for leaf in self._leaves.values())

    def pull(self, factor: Factor) -> list[tuple[fx.Node, Factor]]:
        """The gradients of the inputs from that of the result."""
        if any(value.is_complex() for value in (self.value, *self._leaves.values())):
            # Not all that is linear there is linear over complex numbers.
            return self._formed(factor)
        for way in (
            self._moved, self._by_slopes, self._by_product, self._by_solution, self._by_reduction,
            self._by_exponential,
        ):  # fmt: skip
            found = way(factor)
            if found is not None:
                return found
        return self._formed(factor)

    def _moved(self, factor: Factor) -> list[tuple[fx.Node, Factor]] | None:
        """Through what changes nothing but the shape or the dtype, or transposes a matrix."""
        traits = OPERATORS.get(name_of(self.node), Trait(0))
        (source, *others) = self.inputs
        if others:
            return None
        if Trait.RESHAPES in traits or casts_by_name(self.node):
            return [(source, factor)]
        turns = Trait.PERMUTES in traits or name_of(self.node) in ("mH", "adjoint")
        if turns and self.value.dim() == 2 and is_transpose(self.node):
            found = turned(factor, tuple(self.value.shape))
            return None if found is None else [(source, found)]
        return None

    def _by_slopes(self, factor: Factor) -> list[tuple[fx.Node, Factor]] | None:
        """Through what takes entry by entry."""
        if not is_entrywise(self.node):
            return None
        if not is_pointwise(self.node) and self.inputs != [self.node.args[0]]:
            return None
        shape = self.value.shape
        if not self._slopes:
            spread_out = {node: x.detach().expand(shape).requires_grad_() for node, x in self._leaves.items()}
            result = self._run(spread_out)
            slopes = torch.autograd.grad(
                result, list(spread_out.values()), torch.ones_like(result), materialize_grads=True
            )
            self._slopes = dict(zip(spread_out, slopes, strict=True))
        found = []
        for node, slope in self._slopes.items():
            own = self._leaves[node].shape
            pulled = scaled(factor, slope) if own == shape else reduced(factor, slope, own)
            if pulled is not None:
                found.append((node, pulled))
        return found

    def _by_product(self, factor: Factor) -> list[tuple[fx.Node, Factor]] | None:
        """Through a product of matrices, or of a matrix with a vector."""
        sides = matrix_product(self.node)
        if sides is None:
            return None
        left, right, added = sides
        a, b = self._values[left], self._values[right]
        if (a.dim(), b.dim()) == (2, 1):
            pulled: tuple[Factor, Factor] | None = (outer_with_vector(factor, b), Direct(factor.rows() @ a))
        elif (a.dim(), b.dim()) != (2, 2) or (
            added is not None and self._values[added].shape != self.value.shape
        ):
            return None
        elif name_of(self.node) == "linear":
            pulled = through_product(factor, a, b.mT)
            of_right = None if pulled is None else turned(pulled[1], (b.shape[1], b.shape[0]))
            pulled = None if pulled is None or of_right is None else (pulled[0], of_right)
        else:
            pulled = through_product(factor, a, b)
        if pulled is None:
            return None
        found = [(left, pulled[0]), (right, pulled[1])]
        found += [] if added is None else [(added, factor)]
        return [(node, own) for node, own in found if node in self._leaves]

    def _by_solution(self, factor: Factor) -> list[tuple[fx.Node, Factor]] | None:
        """Through X = A⁻¹B, by A⁻ᵀG and -A⁻ᵀG Xᵀ."""
        if name_of(self.node) != "linalg_solve" or not arguments_of(self.node)["left"]:
            return None
        left, right = arguments_of(self.node)["A"], arguments_of(self.node)["B"]
        a, b = self._values[left], self._values[right]
        if (a.dim(), b.dim()) != (2, 2):
            return None
        inverse = torch.linalg.inv(a)
        pulled = through_product(factor, inverse, b)
        of_left = None if pulled is None else through_product(pulled[1], inverse, self.value)
        if pulled is None or of_left is None:
            return None
        negative = scaled(of_left[0], -torch.ones_like(a))
        found = [(left, negative), (right, pulled[1])]
        return [(node, own) for node, own in found if node in self._leaves and own is not None]

    def _by_reduction(self, factor: Factor) -> list[tuple[fx.Node, Factor]] | None:
        """Through what makes a number of a matrix, or of each of its rows or columns."""
        (source, *others) = self.inputs
        x = self._leaves[source]
        if others or x.dim() < 2 or not isinstance(factor, Direct):
            return None
        axes, every = reduced_axes(self.node, x.dim()), set(range(x.dim()))
        by_rows = axes == every - {0} and self.value.numel() == x.shape[0]
        by_columns = x.dim() == 2 and axes == {0} and self.value.numel() == x.shape[1]
        if self.value.numel() != 1 and not by_rows and not by_columns:
            return None
        (gradient,) = torch.autograd.grad(self._result, [x], torch.ones_like(self._result), retain_graph=True)
        return [(source, spread(factor, gradient, columns=by_columns))]

    def _by_exponential(self, factor: Factor) -> list[tuple[fx.Node, Factor]] | None:
        """Through exp A of a skew-symmetric A."""
        if name_of(self.node) not in ("matrix_exp", "linalg_matrix_exp"):
            return None
        (source,) = self.inputs
        if self._exponential is None:
            self._exponential = (skew_exponential(self._leaves[source]),)
        (known,) = self._exponential
        if known is None:
            return None
        rows = factor.rows()
        gradients = rows.to(self.value.dtype).unflatten(2, self.value.shape)
        return [(source, Direct(known.pulled(gradients).flatten(2)))]

    def _formed(self, factor: Factor) -> list[tuple[fx.Node, Factor]]:
        """Through anything, the gradients of all probes and samples together."""
        rows = factor.rows()
        k, batch = rows.shape[:2]
        probes = rows.to(self.value.dtype).reshape(k * batch, *self.value.shape)
        leaves = list(self._leaves.values())
        gradients, self._together = batched_gradients(
            [self._result], leaves, [probes], together=self._together
        )
        return [
            (node, Direct(gradient.reshape(k, batch, -1)))
            for node, gradient in zip(self._leaves, gradients, strict=True)
            if gradient is not None
        ]
