"""Record what a function does, as a graph of ATen operators on the level at which modules call them.

``torch.fx.experimental.proxy_tensor.make_fx(pre_dispatch=True)`` records the same operators,
but loads torch's compiler first (seconds), makes a fake tensor for every value (milliseconds
each), and keeps operations that write in place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ntkscope.engines.torch.compat import (
    NO_RECORDING,
    PreDispatchMode,
    before_dispatch,
    name_of_operator,
    name_of_overload,
    pytree,
    storage_id,
    writes_in_place,
)
from ntkscope.engines.torch.errors import StructureError

__all__ = ["record"]


def record(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> tuple[fx.Graph, nn.Module]:
    """Runs ``function(*arguments)`` and returns what it did, free of operations that write in place.

    The module holds the constants that the graph reads. Every node's ``meta["val"]`` is the value
    that it had.

    Args:
        function: What to record; it must return one tensor.
        arguments: Its arguments. They become the graph's placeholders.

    Raises:
        StructureError: If it writes in place into memory that another value shares, or this torch
            cannot record.
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
        # Values are kept alive, so that no two of them ever have the same id.
        self._nodes: dict[int, fx.Node] = {}
        self._values: list[Tensor] = []
        self._by_memory: dict[int, list[Tensor]] = {}
        self._stale: set[int] = set()
        for index, argument in enumerate(arguments):
            self._remember(argument, self._graph.placeholder(f"argument_{index}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        node_args, node_kwargs = pytree.tree_map_only(Tensor, self._node, (args, kwargs))
        result = func(*args, **kwargs)
        if writes_in_place(func):
            self._record_in_place(func, node_args, node_kwargs, args)
        else:
            self._record(func, node_args, node_kwargs, result)
        return result

    def finish(self, result: Any) -> tuple[fx.Graph, nn.Module]:
        """The graph that returns ``result``, and its constants."""
        self._graph.output(self._node(result))
        self._graph.eliminate_dead_code()
        return self._graph, self._constants

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        node = self._graph.call_function(func, args, kwargs)
        node.meta["val"] = result
        if isinstance(result, Tensor):
            self._remember(result, self._detached(node))
        elif isinstance(result, (tuple, list)):
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    picked = self._graph.call_function(operator.getitem, (node, index))
                    self._remember(part, self._detached(picked))

    def _detached(self, node: fx.Node) -> fx.Node:
        """What is computed under ``torch.no_grad()`` carries no gradient."""
        if torch.is_grad_enabled():
            return node
        return self._graph.call_function(torch.ops.aten.detach.default, (node,))

    def _record_in_place(self, func: Any, node_args: Any, kwargs: Any, args: Any) -> None:
        """The same operation with a result of its own; other views of the memory are stale from here."""
        name = name_of_operator(func)
        packet = getattr(torch.ops.aten, name.rstrip("_"), None) if name.endswith("_") else None
        overload = getattr(packet, name_of_overload(func), None)
        written = args[0] if args else None
        if overload is None or not isinstance(written, Tensor):
            raise StructureError(f"the model writes in place by {func}, which has no other form")
        relatives = self._by_memory.get(storage_id(written), [])
        self._stale |= {id(relative) for relative in relatives if relative is not written}
        self._remember(written, self._detached(self._graph.call_function(overload, node_args, kwargs)))

    def _remember(self, value: Tensor, node: fx.Node) -> None:
        node.meta["val"] = value
        self._nodes[id(value)] = node
        self._values.append(value)
        relatives = self._by_memory.setdefault(storage_id(value), [])
        if all(relative is not value for relative in relatives):
            relatives.append(value)

    def _node(self, value: Any) -> fx.Node:
        if id(value) in self._stale:
            raise StructureError("the model writes in place into a part of a tensor")
        node = self._nodes.get(id(value))
        if node is None:
            name = f"constant_{len(self._values)}"
            self._constants.register_buffer(name, value.detach())
            node = self._graph.get_attr(name)
            self._remember(value, node)
        return node
