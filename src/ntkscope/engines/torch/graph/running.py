"""A recorded graph as a function, run node by node.

``fx.GraphModule`` writes a program for it and compiles that: of a recurrence's thousand operations this
takes longer than three forward and backward passes of the model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ntkscope.engines.torch.graph.walks import leading_to

__all__ = ["Running"]


@dataclass(frozen=True)
class _Step:
    """One operation on the list of all values.

    Attributes:
        target: What is called.
        take: Its arguments, of all values.
        place: Where its result goes.
        last: The values that nothing needs after it.
    """

    target: Callable[..., Any]
    take: Callable[[list[Any]], Sequence[Any]]
    place: int
    last: Sequence[int]


class Running:
    """The nodes that some results depend on, as a function of the placeholders.

    Args:
        graph: The operations.
        constants: The tensors that the graph reads, by name.
        results: Nodes, or tuples of nodes; the graph's own output if not given.
        zeros: Placeholders that are no arguments: what one of them is added to is taken as it is.
    """

    def __init__(
        self, graph: fx.Graph, constants: nn.Module, results: Any = None, zeros: Sequence[fx.Node] = ()
    ) -> None:
        nodes = list(graph.nodes)
        results = nodes[-1].args[0] if results is None else results
        without = set(zeros)
        #: Every value's place, with the constants in theirs.
        self._values: list[Any] = []
        self._places: dict[fx.Node, int] = {}
        calls: list[tuple[Callable[..., Any], list[int], int]] = []
        arguments = [node for node in nodes if node.op == "placeholder" and node not in without]
        for node in arguments:
            self._places[node] = self._place()
        self._arguments = [self._places[node] for node in arguments]
        ends: list[fx.Node] = []
        fx.map_arg(results, ends.append)
        needed = leading_to(ends)
        for node in nodes:
            if node not in needed or node.op in ("placeholder", "output"):
                continue
            sources = node.all_input_nodes
            if node.op == "get_attr":
                self._places[node] = self._place(getattr(constants, str(node.target)))
            elif without and any(source in without for source in sources):
                (kept,) = (source for source in sources if source not in without)
                self._places[node] = self._places[kept]
            else:
                self._call(node, calls)
        self._results = self._listed(results, calls)
        self._steps = _steps(calls, keep=[*self._arguments, self._results])

    def __call__(self, *arguments: Any) -> Any:
        """The results, in the form in which they were asked for."""
        values = self._values.copy()
        for place, value in zip(self._arguments, arguments, strict=True):
            values[place] = value
        for step in self._steps:
            values[step.place] = step.target(*step.take(values))
            for place in step.last:
                values[place] = None
        return values[self._results]

    def _place(self, value: Any = None) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _call(self, node: fx.Node, calls: list[tuple[Callable[..., Any], list[int], int]]) -> None:
        """A step for an operation, and one for each list among its arguments."""
        target: Any = node.target
        places = [self._listed(value, calls) for value in node.args]
        if node.kwargs:
            target = _named(target, len(places), list(node.kwargs))
            places += [self._listed(value, calls) for value in node.kwargs.values()]
        self._places[node] = self._place()
        calls.append((target, places, self._places[node]))

    def _listed(self, value: Any, calls: list[tuple[Callable[..., Any], list[int], int]]) -> int:
        """The place of an argument; a list of values is put together by a step of its own."""
        if isinstance(value, fx.Node):
            return self._places[value]
        if isinstance(value, (list, tuple)) and _holds_nodes(value):
            places = [self._listed(part, calls) for part in value]
            calls.append((_as_tuple if isinstance(value, tuple) else _as_list, places, self._place()))
            return calls[-1][2]
        return self._place(value)


def _holds_nodes(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return bool(found)


def _as_tuple(*parts: Any) -> tuple[Any, ...]:
    return parts


def _as_list(*parts: Any) -> list[Any]:
    return list(parts)


def _named(target: Callable[..., Any], count: int, names: list[str]) -> Callable[..., Any]:
    """An operation whose named arguments follow the others."""

    def call(*given: Any) -> Any:
        return target(*given[:count], **dict(zip(names, given[count:], strict=True)))

    return call


def _steps(calls: Sequence[tuple[Callable[..., Any], list[int], int]], keep: Sequence[int]) -> list[_Step]:
    """The calls, each with the results of others that it is the last one to read."""
    seen = set(keep)
    made = {place for _, _, place in calls}
    steps = []
    for target, places, place in reversed(calls):
        last = [read for read in dict.fromkeys(places) if read in made and read not in seen]
        seen.update(last)
        steps.append(_Step(target, _taking(places), place, last))
    return steps[::-1]


def _taking(places: Sequence[int]) -> Callable[[list[Any]], Sequence[Any]]:
    if len(places) > 1:
        taking: Callable[[list[Any]], Sequence[Any]] = operator.itemgetter(*places)
        return taking
    return lambda values: [values[place] for place in places]
