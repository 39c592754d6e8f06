"""Record what a function does, as a graph of ATen operators on the level at which modules call them.

``torch.fx.experimental.proxy_tensor.make_fx(pre_dispatch=True)`` records the same operators,
but loads torch's compiler first (seconds), makes a fake tensor for every value (milliseconds
each), and keeps operations that write in place.
"""

from __future__ import annotations

import contextlib
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
    transforms_are_active,
)
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.arguments import leaves_of, map_tensors
from ntkscope.engines.torch.graph.autocast import active_autocast, cast_by, casts_of, without_autocast
from ntkscope.engines.torch.graph.below import Below
from ntkscope.engines.torch.graph.decompositions import bags_of_equal_length, fill_in_values, record_bags
from ntkscope.engines.torch.graph.inplace import functional_overload, writes_all_of_it
from ntkscope.engines.torch.graph.known import KnownTensors, UnseenError
from ntkscope.engines.torch.graph.operators import bound_arguments, drop_dead, is_random
from ntkscope.engines.torch.graph.parts import read_part, write_part
from ntkscope.engines.torch.graph.scattered import join_slices
from ntkscope.engines.torch.history import own_backward, source_of_own

__all__ = ["Recording", "record"]

aten = torch.ops.aten

#: Operations with arguments in several precisions.
_WIDENED = {aten.batch_norm.default}

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
    try:
        return _recorded(function, arguments, whole=True)
    except UnseenError:
        # A gradient that is taken inside needs what the parts of an operation computed, as of ``linear``.
        return _recorded(function, arguments, whole=False)


def _recorded(function: Callable[..., Tensor], arguments: Sequence[Tensor], *, whole: bool) -> Recording:
    recorder = _Recorder(arguments, whole=whole)
    with torch.enable_grad(), before_dispatch():
        with recorder:
            result = function(*arguments)
        return recorder.finish(result)


class _Recorder(PreDispatchMode):
    """Writes down each operation that it sees.

    Args:
        arguments: The function's.
        whole: Whether operations that are made of others are written down as one.
    """

    def __init__(self, arguments: Sequence[Tensor], *, whole: bool) -> None:
        super().__init__()
        self._whole = whole
        self._graph = fx.Graph()
        self._constants = nn.Module()
        self._known = KnownTensors()
        self._varied: set[fx.Node] = set()
        self._sloped: set[int] = set()
        self._count = 0
        for index, argument in enumerate(arguments):
            node = self._graph.placeholder(f"argument_{index}")
            self._varied.add(node)
            self._known.remember(argument, node)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if transforms_are_active():
            # What they wrap has no memory to look at: they are recorded as what they compute.
            with Below(self._write_down_below):
                return func(*args, **kwargs)
        return self._write_down(func, args, kwargs)

    def _write_down_below(self, func: Any, args: Any, kwargs: Any) -> Any:
        """As :meth:`_write_down`, where a tensor is not yet known as a view of another."""
        self._known.has_versions = False
        try:
            return self._write_down(func, args, kwargs)
        finally:
            self._known.has_versions = True

    def _write_down(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation on tensors that no transformation wraps, and records it."""
        if not self._whole and not schema_of(func).is_mutable:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        node_args, node_kwargs = map_tensors(self._node, (args, kwargs))
        if schema_of(func).is_mutable:
            return self._record_in_place(func, node_args, node_kwargs, args, kwargs)
        result = func(*args, **kwargs)
        if any(isinstance(part, Tensor) for part in leaves_of(result)):
            lowered = active_autocast((args, kwargs))
            if lowered is not None:
                dtype = casts_of(func, args, kwargs, result, lowered)
                node_args, node_kwargs = self._cast(dtype, (node_args, node_kwargs), (args, kwargs))
            self._record(func, node_args, node_kwargs, args, kwargs, result)
        # What gives no tensor, such as a profiler's marks, is no part of the computation.
        return result

    def finish(self, result: Tensor) -> Recording:
        """The recording whose graph returns ``result``."""
        self._graph.output(self._node(result))
        drop_dead(self._graph)
        join_slices(self._graph)
        drawn = [node for node in self._graph.nodes if node.op == "call_function" and is_random(node)]
        if drawn:
            names = ", ".join(sorted({str(node.target) for node in drawn}))
            raise StructureError(
                f"the model draws random numbers ({names}), which a recording would draw anew"
            )
        return Recording(self._graph, self._constants, own_backward(result))

    def _call(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        """A node of the graph, if its arguments can be written down."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            # It is refused where its numbers are used, whatever generator they came from.
            args, kwargs = pytree.tree_map_only(torch.Generator, lambda generator: None, (args, kwargs))
        for value in leaves_of((args, kwargs)):
            if not isinstance(value, _PRINTABLE):
                raise StructureError(
                    f"{func} has an argument that a graph cannot hold: a {type(value).__name__}"
                )
        node = self._named(func, args, kwargs)
        if any(source in self._varied for source in node.all_input_nodes):
            self._varied.add(node)
        return node

    def _named(self, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        # FX takes longer to find a name, and to look through the arguments, than to make a node.
        self._count += 1
        node = self._graph.create_node("call_function", target, name=f"value_{self._count}")
        node.args, node.kwargs = args, kwargs or {}
        return node

    def _record(
        self, func: Any, node_args: Any, node_kwargs: Any, args: Any, kwargs: Any, result: Any
    ) -> None:
        if func in _WIDENED and isinstance(result, Tensor):
            # Torch normalises half precision by averages in float32, but not under vmap.
            node_args, node_kwargs = self._cast(torch.float32, (node_args, node_kwargs), (args, kwargs))
        node = self._call(func, node_args, node_kwargs)
        node.meta["val"] = result
        if isinstance(result, Tensor):
            if func in _WIDENED and result.dtype in (torch.float16, torch.bfloat16):
                node.meta["val"] = result.detach().float()
                node = self._call_on(aten.to.dtype, node, result.dtype)
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
        fill_in_values(list(self._graph.nodes)[first:])
        self._varied.add(picked)
        return picked

    def _cast(self, dtype: torch.dtype | None, nodes: Any, values: Any) -> Any:
        """Nodes of the same arguments as autocast casts them."""
        wanted = cast_by(dtype, values)

        def cast(node: Any, value: Any, other: Any) -> Any:
            if not isinstance(value, Tensor) or value.dtype == other.dtype:
                return node
            made = self._call_on(aten.to.dtype, node, dtype)
            made.meta["val"] = other.detach()
            return made

        return pytree.tree_map(cast, nodes, values, wanted)

    def _call_on(self, target: Any, node: fx.Node, *others: Any) -> fx.Node:
        made = self._named(target, (node, *others))
        if node in self._varied:
            self._varied.add(made)
        if "val" in node.meta and not isinstance(node.meta["val"], (tuple, list)):
            fill_in_values([made])
        return made

    def _detached(self, node: fx.Node) -> fx.Node:
        """What is computed under ``torch.no_grad()`` carries no gradient."""
        return node if torch.is_grad_enabled() else self._call_on(aten.detach.default, node)

    def _record_in_place(self, func: Any, node_args: Any, node_kwargs: Any, args: Any, kwargs: Any) -> Any:
        """The same operation with a result of its own; other views of the memory are stale from here."""
        written = args[0] if args else None
        # A copy has a form of its own, which has no derivative.
        overload = None if func is aten.copy_.default else functional_overload(func)
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        if drawn and overload is None:
            # It stands for random numbers, which are refused where they are read.
            overload, node_args, node_kwargs = aten.rand_like.default, node_args[:1], {}
        if not isinstance(written, Tensor) or (overload is None and func is not aten.copy_.default):
            raise StructureError(f"the model writes in place by {func}, which has no other form")
        root = self._known.root(written)
        whole = None if root is None else self._node(root)
        expected: Any = None
        if not drawn:
            with torch.no_grad(), without_autocast(args):
                expected = args[1].expand_as(args[0]) if overload is None else overload(*args, **kwargs)
                # What is computed must not be what is written.
                expected = expected.clone() if isinstance(expected, Tensor) else expected
        result = func(*args, **kwargs)
        if not drawn and not writes_all_of_it(written.detach(), expected):
            raise StructureError(f"the model writes in place by {func}, which {overload} does not compute")
        if overload is None:
            node = node_args[1]
            if args[1].shape != written.shape:
                node = self._call_on(aten.expand.default, node, list(written.shape))
        else:
            node = self._call(overload, node_args, node_kwargs)
            node.meta["val"] = written.detach() if drawn else expected
        if drawn or expected.dtype != written.dtype:
            node = self._call_on(aten.to.dtype, node, written.dtype)
        node = self._detached(node)
        if root is None or whole is None:
            self._known.overwrite(written, node)
        else:
            fresh = write_part(self._make, self._constant, root, whole, written, node)
            self._known.overwrite(root, self._detached(fresh))
            self._known.remember(written, node)
        return result

    def _make(self, target: Any, *args: Any) -> fx.Node:
        """A node, with the value that it has."""
        node = self._call(target, args, {})
        fill_in_values([node])
        return node

    def _constant(self, value: Tensor) -> fx.Node:
        name = f"constant_{len(self._known)}"
        self._constants.register_buffer(name, value.detach())
        node = self._graph.get_attr(name)
        self._known.remember(value, node, constant=True)
        return node

    def _with_slope(self, value: Tensor) -> None:
        """Gives what a function with a backward of its own has made the slope that it has there.

        A function of the entries, one by one, as a spike or a rounding whose gradient is another function's:
        y + s (x - x) has the value y, and the gradient s, what its backward makes of ones. Where it is no
        such function the check of the gradients says so.
        """
        source = source_of_own(value)
        if source is None or id(value) in self._sloped:
            return
        self._sloped.add(id(value))
        entering = self._known.made_by(*source)
        if entering is None or entering.shape != value.shape or entering.dtype != value.dtype:
            return
        slope = None
        # Some can be run back by ``backward()`` alone, as reentrant checkpoints.
        with contextlib.suppress(Exception), self, torch.no_grad():
            (slope,) = torch.autograd.grad(value, entering, torch.ones_like(value), retain_graph=True)
        if slope is None:
            return
        x, plain = self._node(entering), self._call_on(aten.detach.default, self._node(value))
        none = self._make(aten.sub.Tensor, x, self._call_on(aten.detach.default, x))
        made = self._make(aten.mul.Tensor, none, self._node(slope))
        self._known.remember(value, self._make(aten.add.Tensor, plain, made))

    def _node(self, value: Tensor) -> fx.Node:
        self._with_slope(value)
        node = self._known.unchanged(value)
        if node is not None:
            return node
        root = self._known.root(value) if self._known.is_stale(value) else None
        if root is not None and not self._known.is_stale(root):
            # What shares its memory was written into, and it was not read since.
            whole = self._node(root)
            self._known.remember(value, read_part(self._make, self._constant, root, whole, value))
        known = self._known.find(value)
        if known is not None:
            node, has_history = known
            if has_history and not value.requires_grad:
                # The same memory, taken out of the history (``.data``, NumPy).
                node = self._call_on(aten.detach.default, node)
            # What makes a tensor may give it as another object, into which is written then.
            self._known.remember(value, node)
            return node
        return self._constant(value)
