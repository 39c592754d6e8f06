"""Record what a function does, as a graph of ATen operators on the level at which modules call them.

``torch.fx.experimental.proxy_tensor.make_fx(pre_dispatch=True)`` records the same operators,
but loads torch's compiler first (seconds), makes a fake tensor for every value (milliseconds
each), and keeps operations that write in place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ntkscope.engines.torch.compat import (
    NO_RECORDING,
    OpOverload,
    PreDispatchMode,
    before_dispatch,
    pytree,
    schema_of,
)
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.decompositions import bags_of_equal_length, record_bags
from ntkscope.engines.torch.graph.inplace import functional_overload, writes_all_of_it
from ntkscope.engines.torch.graph.known import KnownTensors
from ntkscope.engines.torch.graph.operators import bound_arguments, drop_dead, is_random

__all__ = ["Recording", "record"]

aten = torch.ops.aten

#: What can stand in the source text that FX makes of a graph.
_PRINTABLE = (
    fx.Node, type(None), bool, int, float, complex, str,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """What a function did.

    Attributes:
        graph: The operations; ``meta["val"]`` of every node is the value that it had.
        constants: The tensors that the graph reads, by name.
        own_backward: Names of the autograd functions with a backward of their own, on the result's way.
    """

    graph: fx.Graph
    constants: nn.Module
    own_backward: tuple[str, ...] = ()


def record(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> Recording:
    """Runs ``function(*arguments)`` and returns what it did, free of operations that write in place.

    Args:
        function: What to record; it must return one tensor.
        arguments: Its arguments. They become the graph's placeholders.

    Raises:
        StructureError: If it draws random numbers that its result depends on, writes in place into
            memory that another value shares, or uses what a graph cannot hold.
    """
    if NO_RECORDING:
        raise StructureError(NO_RECORDING)
    recorder = _Recorder(arguments)
    with torch.enable_grad(), before_dispatch(), recorder:
        result = function(*arguments)
    return recorder.finish(result)


class _Recorder(PreDispatchMode):
    """Writes down each operation that it sees."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph = fx.Graph()
        self._constants = nn.Module()
        self._known = KnownTensors()
        self._varied: set[fx.Node] = set()
        for index, argument in enumerate(arguments):
            node = self._graph.placeholder(f"argument_{index}")
            self._varied.add(node)
            self._known.remember(argument, node)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        node_args, node_kwargs = pytree.tree_map_only(Tensor, self._node, (args, kwargs))
        if schema_of(func).is_mutable:
            return self._record_in_place(func, node_args, node_kwargs, args, kwargs)
        result = func(*args, **kwargs)
        if any(isinstance(part, Tensor) for part in pytree.tree_leaves(result)):
            self._record(func, node_args, node_kwargs, args, kwargs, result)
        # What gives no tensor, such as a profiler's marks, is no part of the computation.
        return result

    def finish(self, result: Tensor) -> Recording:
        """The recording whose graph returns ``result``."""
        self._graph.output(self._node(result))
        drop_dead(self._graph)
        drawn = [node for node in self._graph.nodes if node.op == "call_function" and is_random(node)]
        if drawn:
            names = ", ".join(sorted({str(node.target) for node in drawn}))
            raise StructureError(
                f"the model draws random numbers ({names}), which a recording would draw anew"
            )
        return Recording(self._graph, self._constants, _own_backward(result))

    def _call(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        """A node of the graph, if its arguments can be written down."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            # It is refused where its numbers are used, whatever generator they came from.
            args, kwargs = pytree.tree_map_only(torch.Generator, lambda generator: None, (args, kwargs))
        for value in pytree.tree_leaves((args, kwargs)):
            if not isinstance(value, _PRINTABLE):
                raise StructureError(
                    f"{func} has an argument that a graph cannot hold: a {type(value).__name__}"
                )
        node = self._graph.call_function(func, args, kwargs)
        if any(source in self._varied for source in node.all_input_nodes):
            self._varied.add(node)
        return node

    def _record(
        self, func: Any, node_args: Any, node_kwargs: Any, args: Any, kwargs: Any, result: Any
    ) -> None:
        node = self._call(func, node_args, node_kwargs)
        node.meta["val"] = result
        if isinstance(result, Tensor):
            self._known.remember(result, self._detached(node))
            return
        for index, part in enumerate(result):
            if isinstance(part, Tensor):
                picked = self._call_on(operator.getitem, node, index)
                if index == 0:
                    picked = self._bags(func, node_args, node_kwargs, args, kwargs) or picked
                self._known.remember(part, self._detached(picked))

    def _bags(self, func: Any, node_args: Any, node_kwargs: Any, args: Any, kwargs: Any) -> fx.Node | None:
        if not isinstance(func, OpOverload) or schema_of(func).name != "aten::embedding_bag":
            return None
        values, nodes = bound_arguments(func, args, kwargs), bound_arguments(func, node_args, node_kwargs)
        if nodes["offsets"] in self._varied:
            return None
        length = bags_of_equal_length(func, values)
        if length is None:
            return None
        first = len(self._graph.nodes)
        picked = record_bags(self._graph, nodes, values["weight"], length)
        _run_to_fill_in_values(list(self._graph.nodes)[first:])
        self._varied.add(picked)
        return picked

    def _call_on(self, target: Any, node: fx.Node, *others: Any) -> fx.Node:
        made = self._graph.call_function(target, (node, *others))
        if node in self._varied:
            self._varied.add(made)
        return made

    def _detached(self, node: fx.Node) -> fx.Node:
        """What is computed under ``torch.no_grad()`` carries no gradient."""
        return node if torch.is_grad_enabled() else self._call_on(aten.detach.default, node)

    def _record_in_place(self, func: Any, node_args: Any, node_kwargs: Any, args: Any, kwargs: Any) -> Any:
        """The same operation with a result of its own; other views of the memory are stale from here."""
        written = args[0] if args else None
        overload = functional_overload(func)
        if not isinstance(written, Tensor) or (overload is None and func is not aten.copy_.default):
            raise StructureError(f"the model writes in place by {func}, which has no other form")
        expected: Any = None
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        if not drawn:
            with torch.no_grad():
                expected = args[1].expand_as(args[0]) if overload is None else overload(*args, **kwargs)
                # An in-place operation gives no other number, but it is the graph that is run afterwards.
                expected = expected.clone() if isinstance(expected, Tensor) else expected
        result = func(*args, **kwargs)
        if not drawn and not writes_all_of_it(written.detach(), expected):
            raise StructureError(f"the model writes in place by {func}, which {overload} does not compute")
        if overload is None:
            node = self._call_on(aten.expand.default, node_args[1], list(written.shape))
        else:
            node = self._call(overload, node_args, node_kwargs)
        if drawn or expected.dtype != written.dtype:
            node = self._call_on(aten.to.dtype, node, written.dtype)
        self._known.overwrite(written, self._detached(node))
        return result

    def _node(self, value: Tensor) -> fx.Node:
        known = self._known.find(value)
        if known is not None:
            node, has_history = known
            if has_history and not value.requires_grad:
                # The same memory, taken out of the history (``.data``, NumPy).
                node = self._call_on(aten.detach.default, node)
                self._known.remember(value, node)
            return node
        name = f"constant_{len(self._known)}"
        self._constants.register_buffer(name, value.detach())
        node = self._graph.get_attr(name)
        self._known.remember(value, node, constant=True)
        return node


def _run_to_fill_in_values(nodes: Sequence[fx.Node]) -> None:
    """The values of nodes that were made without being run."""
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        with torch.no_grad():
            node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]


def _own_backward(result: Tensor) -> tuple[str, ...]:
    """Names of the functions with a backward of their own in a tensor's history."""
    names: dict[str, None] = {}
    seen: set[Any] = set()
    stack = [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names[type(node).__name__.removesuffix("Backward")] = None
        stack.extend(function for function, _ in node.next_functions)
    return tuple(sorted(names))
