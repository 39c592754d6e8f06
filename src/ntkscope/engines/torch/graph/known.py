"""The tensors that a recording has seen, found again by identity, or by memory if they are other objects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ntkscope.engines.torch.compat import has_memory, is_wrapped
from ntkscope.engines.torch.errors import StructureError
from ntkscope.engines.torch.graph.parts import is_root

__all__ = ["KnownTensors", "UnseenError"]


class UnseenError(StructureError):
    """A tensor has a history that was not recorded."""


class KnownTensors:
    """Which node computed a tensor.

    A tensor that comes back as another object (one that autograd saved, ``.data``, a NumPy view) is
    found by its memory: storage, offset, shape and strides.

    Attributes:
        has_versions: Whether tensors that come have the versions of what they are views of.
    """

    def __init__(self) -> None:
        self.has_versions = True
        self._nodes: dict[int, fx.Node] = {}
        # Values are kept alive, so that no two of them ever have the same id.
        self._values: list[Tensor] = []
        # In each memory by identity, in the order in which they came.
        self._by_memory: dict[Any, dict[int, Tensor]] = {}
        self._versions: dict[int, int | None] = {}
        self._stale: set[int] = set()
        self._constants: set[int] = set()

    def __len__(self) -> int:
        return len(self._values)

    def remember(self, value: Tensor, node: fx.Node, *, constant: bool = False) -> None:
        """Notes that a node computed this value.

        Args:
            value: The tensor.
            node: Its node.
            constant: Whether it came from outside.
        """
        node.meta["val"] = value
        self._nodes[id(value)] = node
        self._values.append(value)
        # Below a transformation a view has no version in common with what it is a view of, yet.
        self._versions[id(value)] = _version(value) if self.has_versions else None
        self._stale.discard(id(value))
        if constant:
            self._constants.add(id(value))
        self._by_memory.setdefault(_memory(value), {}).setdefault(id(value), value)

    def made_by(self, function: Any, number: int) -> Tensor | None:
        """The known tensor that is this result of a function of autograd's, or the leaf of it."""
        leaf = getattr(function, "variable", None)
        if leaf is not None:
            return leaf if id(leaf) in self._nodes else None
        made = (one for one in self._values if one.grad_fn is function and one.output_nr == number)
        return next(made, None)

    def overwrite(self, value: Tensor, node: fx.Node) -> None:
        """Notes that a node computed what was written into this tensor; what shares its memory is stale."""
        relatives = self._relatives(value)
        self._stale |= {id(relative) for relative in relatives if relative is not value}
        self._constants.discard(id(value))
        self.remember(value, node)

    def root(self, value: Tensor) -> Tensor | None:
        """The largest tensor in the memory of this one; ``None`` if it is that itself."""
        relatives = [one for one in self._relatives(value) if is_root(one)]
        largest = max(relatives, key=Tensor.numel, default=value)
        return None if largest is value else largest

    def is_stale(self, value: Tensor) -> bool:
        """Whether a tensor that shares memory with this known one was written into."""
        if id(value) in self._nodes:
            return id(value) in self._stale
        relatives = self._relatives(value)
        places = [one for one in relatives if _same_place(one, value)]
        return bool(places) and all(id(one) in self._stale for one in places)

    def unchanged(self, value: Tensor) -> fx.Node | None:
        """The node that computed this very tensor, where nothing was written into it since."""
        key = id(value)
        version = self._versions.get(key)
        if version is None or key in self._stale or version != _version(value):
            return None
        return self._nodes[key]

    def find(self, value: Tensor) -> tuple[fx.Node, bool] | None:
        """The node that computed a value, and whether the value that it had then has a history.

        Returns:
            ``None`` if the value came from outside of the recording.

        Raises:
            StructureError: If it is known that it did not, but not which node computed it.
        """
        if id(value) in self._stale:
            raise StructureError("the model writes in place into a part of a tensor")
        node = self._nodes.get(id(value))
        if node is not None:
            if self._versions[id(value)] not in (None, _version(value)):
                raise StructureError("the model writes in place by a path that is not recorded")
            return node, False
        if is_wrapped(value):
            raise StructureError("the model uses torch.func inside its forward pass")
        relatives = self._relatives(value)
        same = [one for one in relatives if id(one) not in self._stale and _same_place(one, value)]
        for one in sorted(same, key=lambda one: one.requires_grad != value.requires_grad):
            if not value.requires_grad or (one.requires_grad and one.grad_fn is value.grad_fn):
                return self._nodes[id(one)], one.requires_grad
        if any(id(one) in self._stale and _same_place(one, value) for one in relatives):
            raise StructureError("the model writes in place into a part of a tensor")
        if value.grad_fn is not None:
            raise UnseenError(
                "the model uses a tensor with a history of its own, as one that was kept from an earlier pass"
            )
        if any(id(one) not in self._constants for one in relatives or self._around(value)):
            raise StructureError("the model reads a tensor's memory by a path that is not recorded")
        return None

    def _relatives(self, value: Tensor) -> list[Tensor]:
        """The known tensors in the memory of this one."""
        return list(self._by_memory.get(_memory(value), {}).values())

    def _around(self, value: Tensor) -> list[Tensor]:
        """The values whose memory holds that of a value in a storage of its own, as NumPy makes them."""
        if not _is_plain(value):
            return []
        place = value.data_ptr()
        return [
            one
            for relatives in self._by_memory.values()
            for one in list(relatives.values())[:1]
            if _is_plain(one) and _holds(one, place)
        ]


def _holds(value: Tensor, place: int) -> bool:
    storage = value.untyped_storage()
    start = storage.data_ptr()
    return start <= place < start + storage.nbytes()


def _is_plain(value: Tensor) -> bool:
    return value.layout is torch.strided and not is_wrapped(value) and has_memory(value)


def _memory(value: Tensor) -> Any:
    """The same for tensors in one storage."""
    if not _is_plain(value):
        return ("object", id(value))
    pointer = value.untyped_storage().data_ptr()
    return (value.device, pointer) if pointer else ("empty", id(value))


def _same_place(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors in one storage are the same numbers."""
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and first.stride() == second.stride()
        and first.storage_offset() == second.storage_offset()
        and (first.is_conj(), first.is_neg()) == (second.is_conj(), second.is_neg())
    )


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version
