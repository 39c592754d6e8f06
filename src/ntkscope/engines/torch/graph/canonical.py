"""Products of samples with a weight, however they are written, as the linear map that they are.

``einsum``, ``bmm``, ``addmm`` and ``matmul`` from either side are one operation on the weight as a matrix,
between moves of axes. As ``linear`` it has the quickest rule, takes its bias with it, and runs once for all
samples, where a batched product would have a copy of the weight for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.graph.operators import (
    OPERATORS,
    Trait,
    drop_dead,
    flat_arguments_of,
    name_of,
    on_meta,
    rearranges,
)
from ntkscope.engines.torch.rules.contractions import Label, Labels
from ntkscope.engines.torch.rules.products import is_product, product_of

__all__ = ["use_linear_maps"]

aten = torch.ops.aten


def use_linear_maps(graph: fx.Graph, parameters: Iterable[fx.Node], weights: Iterable[fx.Node] = ()) -> None:
    """Writes products with a weight as ``linear``, where all uses of the weight become alike.

    Args:
        graph: Its nodes have their values in ``meta["val"]``.
        parameters: The nodes of the parameters.
        weights: Those of weights that are derived from others, and are to be used as they are.
    """
    unmoved = dict.fromkeys(weights)
    fixed = _views_of(parameters) | unmoved
    plans: dict[fx.Node, list[_Plan | None]] = {weight: [] for weight in fixed}
    for weight in fixed:
        if not any(user in fixed for user in weight.users):
            plans[weight] = [_plan(user, weight, fixed) for user in weight.users]
    for weight, found in plans.items():
        known = [plan for plan in found if plan is not None]
        alike = len(known) == len(found) and len({plan.view for plan in known}) == 1
        if alike and not (weight in unmoved and known[0].moves_weight):
            for plan in known:
                plan.carry_out(graph)
    for node in list(graph.nodes):
        if _is_turned_back(node):
            node.replace_all_uses_with(node.all_input_nodes[0].all_input_nodes[0])
    drop_dead(graph)
    for node in list(graph.nodes):
        _take_bias(graph, node, fixed)


def _views_of(parameters: Iterable[fx.Node]) -> dict[fx.Node, None]:
    """The parameters, and what shows all of one in another shape."""
    found = dict.fromkeys(parameters)
    stack = list(found)
    while stack:
        for user in stack.pop().users:
            if rearranges(user) and user not in found:
                found[user] = None
                stack.append(user)
    return found


@dataclass(frozen=True)
class _Plan:
    """One product as a linear map.

    Attributes:
        node: The product.
        weight: Its weight.
        view: The order of the weight's axes, and its shape as a matrix.
        other: What it is multiplied with.
        axes: The order of the other's axes, positions first.
        shape: The other's shape then.
        split: Shape of the linear map's output, with its features' axes apart.
        turn: The order of the product's axes among these.
        added: What is added to the product.
        is_bias: Whether that is one number for each feature.
    """

    node: fx.Node
    weight: fx.Node
    view: tuple[tuple[int, ...], tuple[int, int]]
    other: fx.Node
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    split: tuple[int, ...]
    turn: tuple[int, ...]
    added: fx.Node | None
    is_bias: bool

    @property
    def moves_weight(self) -> bool:
        """Whether the weight is not the matrix as it is."""
        axes, shape = self.view
        return list(axes) != sorted(axes) or tuple(self.weight.meta["val"].shape) != shape

    def carry_out(self, graph: fx.Graph) -> None:
        """Puts the linear map into the place of the product."""
        out = tuple(self.node.meta["val"].shape)
        with graph.inserting_before(self.node):
            matrix = _moved(graph, self.weight, *self.view)
            x = _moved(graph, self.other, self.axes, self.shape)
            given = [x, matrix]
            if self.added is not None and self.is_bias:
                given.append(_moved(graph, self.added, None, (self.view[1][0],)))
            y = _call(graph, aten.linear.default, *given)
            y = _moved(graph, _moved(graph, y, None, self.split), self.turn, out)
            if self.added is not None and not self.is_bias:
                y = _call(graph, aten.add.Tensor, y, self.added)
        self.node.replace_all_uses_with(y)
        graph.erase_node(self.node)


def _plan(node: fx.Node, weight: fx.Node, fixed: Iterable[fx.Node]) -> _Plan | None:
    """A product as a linear map; ``None`` where it is another operation, or a batch of products."""
    if node.op != "call_function" or not is_product(node.target):
        return None
    arguments = flat_arguments_of(node)
    names = [name for name, value in arguments.items() if value is weight]
    written = product_of(node.target, {name: on_meta(value) for name, value in arguments.items()})
    if len(names) != 1 or any(scale != 1 for scale, _ in written.terms):
        return None
    _, factors = written.find(names[0])
    added = [arguments[name] for _, term in written.terms if term is not factors for name in term]
    others = [arguments[name] for name in factors if name != names[0]]
    if len(others) != 1 or others[0] in fixed or not all(isinstance(x, fx.Node) for x in added):
        return None
    (other_name,) = (name for name in factors if name != names[0])
    return _planned(
        node,
        (weight, factors[names[0]]),
        (others[0], factors[other_name]),
        written.output,
        (added[0], next(term[n] for _, term in written.terms if term is not factors for n in term))
        if added
        else None,
    )


def _planned(
    node: fx.Node,
    weight: tuple[fx.Node, Labels],
    other: tuple[fx.Node, Labels],
    output: Labels,
    added: tuple[fx.Node, Labels] | None,
) -> _Plan | None:
    values: list[Any] = [x.meta.get("val") for x in (node, weight[0], other[0])]
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in values):
        return None
    of_output, of_weight, of_other = (
        dict(zip(labels, x.shape, strict=True))
        for labels, x in zip((output, weight[1], other[1]), values, strict=True)
    )
    own = [label for label, size in of_weight.items() if size != 1]
    features = [label for label in own if label in of_other and label not in of_output]
    outputs = [label for label in own if label in of_output and label not in of_other]
    positions = [label for label in of_output if label not in own]
    used = {*features, *(label for label in positions if label in of_other)}
    rest = [label for label in of_other if label not in used]
    if (
        not features
        or not outputs
        or len(features) + len(outputs) != len(own)
        or any(of_other[label] != 1 for label in rest)
        or any(of_other.get(label, 1) != of_output[label] for label in positions)
        or any(of_other[label] != of_weight[label] for label in features)
        or any(of_output[label] != of_weight[label] for label in outputs)
    ):
        return None

    def size(labels: Sequence[Label]) -> int:
        return math.prod(of_weight[label] for label in labels)

    kept = [label for label in positions if label in of_other]
    lengths = tuple(of_other[label] for label in kept)
    result = [*kept, *outputs]
    long = [label for label in output if label in result]
    ones = [label for label in of_weight if label not in own]
    return _Plan(
        node,
        weight[0],
        (_places(weight[1], [*outputs, *features, *ones]), (size(outputs), size(features))),
        other[0],
        _places(other[1], [*kept, *features, *rest]),
        (*lengths, size(features)),
        (*lengths, *(of_weight[label] for label in outputs)),
        tuple(result.index(label) for label in long),
        None if added is None else added[0],
        added is not None and _is_bias(added, outputs),
    )


def _is_bias(added: tuple[fx.Node, Labels], outputs: Sequence[Label]) -> bool:
    """Whether something that is added has the outputs' axes alone."""
    shape = added[0].meta["val"].shape
    long = [label for label, length in zip(added[1], shape, strict=True) if length != 1]
    return long == list(outputs)


def _places(labels: Labels, wanted: Sequence[Label]) -> tuple[int, ...]:
    return tuple(labels.index(label) for label in wanted)


def _is_turned_back(node: fx.Node) -> bool:
    """Whether it puts axes back into the order that they had before another operation turned them."""
    if not _turns(node) or not _turns(node.all_input_nodes[0]):
        return False
    source = node.all_input_nodes[0].all_input_nodes[0]
    value: Any = torch.empty(list(range(1, 1 + source.meta["val"].dim())), device="meta")
    for step in (node.all_input_nodes[0], node):
        target: Any = step.target
        value = target(value, *step.args[1:], **step.kwargs)
    return list(value.shape) == list(range(1, 1 + value.dim()))


def _turns(node: fx.Node) -> bool:
    return Trait.PERMUTES in OPERATORS.get(name_of(node), Trait(0))


def _take_bias(graph: fx.Graph, node: fx.Node, fixed: Iterable[fx.Node]) -> None:
    """What is added to a linear map's output and is the same at all positions becomes its bias."""
    if node.op != "call_function" or node.target is not aten.add.Tensor or node.kwargs:
        return
    for y, bias in (node.args, reversed(node.args)):
        if not isinstance(y, fx.Node) or not isinstance(bias, fx.Node) or bias not in fixed:
            continue
        linear = _linear_behind(y)
        if linear is None or y.meta["val"].shape != node.meta["val"].shape:
            continue
        value = linear.meta["val"]
        if (bias.meta["val"].dtype, bias.meta["val"].shape) != (value.dtype, value.shape[-1:]):
            continue
        node.replace_all_uses_with(y)
        graph.erase_node(node)
        with graph.inserting_before(linear):
            # The bias may be taken from its parameter further below.
            _bring_forward(bias, linear)
            whole = _call(graph, aten.linear.default, *linear.args, bias)
        linear.replace_all_uses_with(whole)
        graph.erase_node(linear)
        return


def _linear_behind(node: fx.Node) -> fx.Node | None:
    """The linear map, without a bias, whose features are the last axis of a node that nothing else reads."""
    features = node.meta["val"].shape[-1:]
    while len(node.users) == 1 and node.meta["val"].shape[-1:] == features:
        if name_of(node) == "linear":
            return node if len(node.args) == 2 and not node.kwargs else None
        is_reshaped = Trait.RESHAPES in OPERATORS.get(name_of(node), Trait(0)) or _is_squeezed(node)
        if not is_reshaped or not isinstance(node.args[0], fx.Node):
            return None
        node = node.args[0]
    return None


def _is_squeezed(node: fx.Node) -> bool:
    """Whether it is the only entry along an axis."""
    source = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
    value = node.meta.get("val")
    return (
        name_of(node) == "select"
        and isinstance(source, Tensor)
        and isinstance(value, Tensor)
        and source.numel() == value.numel()
    )


def _bring_forward(node: fx.Node, place: fx.Node) -> None:
    """Moves a view of a parameter, and what it is a view of, before a place."""
    if node.op == "placeholder" or node < place:
        return
    for source in node.all_input_nodes:
        _bring_forward(source, place)
    place.prepend(node)


def _moved(graph: fx.Graph, node: fx.Node, axes: Sequence[int] | None, shape: Sequence[int]) -> fx.Node:
    """With its axes in this order, and then in this shape."""
    if axes is not None and list(axes) != sorted(axes):
        node = _call(graph, aten.permute.default, node, list(axes))
    if tuple(node.meta["val"].shape) != tuple(shape):
        node = _call(graph, aten.reshape.default, node, list(shape))
    return node


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    with torch.no_grad():
        node.meta["val"] = target(*fx.map_arg(args, lambda source: source.meta["val"]))
    return node
