"""The gradients of one reverse pass, and the memory that they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from ntkscope.engines.torch.reverse.workspace import Workspace
from ntkscope.engines.torch.reverse.written.layout import Layout, Reach, SplitOutput

__all__ = ["GradientStore"]


class GradientStore:
    """The gradients of one reverse pass.

    Args:
        layout: Of the program that is run.
        reach: What is passed.
        leading: (k, B).
        like: Has the gradients' dtype and device.
        memory: Where they lie.

    Attributes:
        runs: The gradients of uses that lie side by side, shape (R, k, B, *shape).
        apart: The gradients of views that are none, which are to be added to their sources.
    """

    def __init__(
        self, layout: Layout, reach: Reach, leading: tuple[int, int], like: Tensor, memory: Workspace
    ) -> None:
        memory.begin()
        self._memory = memory
        self._views = layout.views
        self._leading = leading
        self._like = like
        self._gradients: dict[fx.Node, Any] = {}
        # Memory that nothing was written to yet: it need not be zero if it is written as a whole.
        self._fresh: set[fx.Node] = set()
        self.apart: dict[fx.Node, Tensor] = {}
        self.runs: dict[tuple[int, ...], Tensor] = {}
        for run in layout.runs:
            self._begin_run(run, [node for n in run if n in reach.uses and (node := layout.tapped[n])])
        for number, places in reach.parts.items():
            self._begin_parts(layout.tapped[number], layout.split_outputs[number], places)

    def _begin_run(self, run: tuple[int, ...], nodes: list[fx.Node]) -> None:
        if nodes:
            self.runs[run] = self._empty((len(nodes), *self._leading, *nodes[0].meta["shape"]))
            self._lend(zip(nodes, self.runs[run].unbind(), strict=True))

    def _begin_parts(self, base: fx.Node | None, split: SplitOutput, places: range) -> None:
        assert base is not None
        shape = list(base.meta["shape"])
        shape[split.axis] = len(places)
        block = self._gradients[base] = self._empty((*self._leading, *shape))
        parts = dict(zip(places, block.unbind(split.axis + 2), strict=True))
        for place in places:
            if place not in split.parts:
                parts[place].zero_()
        self._gradients[split.operation] = parts
        self._lend((split.parts[place], parts[place]) for place in places if place in split.parts)

    def _lend(self, memory: Iterable[tuple[fx.Node, Tensor]]) -> None:
        for node, block in memory:
            self._gradients[node] = block
            self._fresh.add(node)

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return self._memory.empty(shape, self._like)

    def _zeros(self, node: fx.Node) -> Tensor:
        return self._empty((*self._leading, *node.meta["shape"])).zero_()

    def of(self, node: fx.Node) -> Any:
        """The gradient of a node, to be read or added to in place; of a split, those of its parts."""
        found = self._gradients.get(node)
        if found is None:
            found = self._gradients[node] = self._begin(node)
        elif node in self._fresh:
            self._fresh.remove(node)
            found.zero_()
        return found

    def _begin(self, node: fx.Node) -> Any:
        view = self._views.get(node)
        if view is None:
            return self._zeros(node)
        try:
            return view(self.of(_source(node)))
        except RuntimeError:
            # No view has this shape where the gradient lies in another order.
            self.apart[node] = self._zeros(node)
            return self.apart[node]

    def slot(self, node: fx.Node) -> tuple[Tensor, bool]:
        """Where the gradient of a node lies, and whether it is to be written as a whole, not added to."""
        if node in self._fresh:
            self._fresh.remove(node)
            return self._gradients[node], True
        if node in self._gradients or node in self._views:
            return self.of(node), False
        self._gradients[node] = self._empty((*self._leading, *node.meta["shape"]))
        return self._gradients[node], True

    def finish(self) -> None:
        """Clears what nothing was written to."""
        for node in self._fresh:
            self._gradients[node].zero_()
        self._fresh.clear()

    def give(self, node: fx.Node, gradient: Tensor) -> None:
        """Adds to the gradient of a node; the memory may become the node's own."""
        if node in self._gradients or node in self._views:
            self.of(node).add_(gradient)
        else:
            self._gradients[node] = gradient

    def rejoin(self, node: fx.Node) -> None:
        """Adds what was kept apart to the source of a view."""
        if node in self.apart:
            source = self.of(_source(node))
            source.add_(self.apart[node].reshape(source.shape))


def _source(view: fx.Node) -> Any:
    return view.args[0]
