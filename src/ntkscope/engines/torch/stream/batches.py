"""Batches that are read again and again, each pass checked to bring the same data as the first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ntkscope.data import as_inputs, inputs_of
from ntkscope.engines.torch.batches import digest
from ntkscope.engines.torch.compat import pytree
from ntkscope.engines.torch.errors import first_line

__all__ = ["Batches", "Reader", "moved"]

_OTHER_DATA = (
    "a kernel is of the same data in every pass: pass shuffle=False, and turn random augmentation off (or "
    "let it depend on the sample's index alone)"
)


class Batches:
    """The batches of a loader, of which as many passes are made as are needed.

    Args:
        loader: A ``DataLoader`` or any other iterable of batches.
        forward: What the model is called with a batch.

    Raises:
        TypeError: If it can be run only once, or one pass at a time.
    """

    def __init__(self, loader: Any, forward: Callable[..., Any]) -> None:
        name = type(loader).__name__
        if hasattr(type(loader), "__next__"):
            raise TypeError(
                f"inputs are a {name}, which can be run only once, and the data is read several times; pass "
                "the DataLoader itself, or an object whose __iter__ starts anew"
            )
        if getattr(loader, "persistent_workers", False):
            raise TypeError(
                "the loader has persistent_workers=True, so that it makes one pass at a time, and two of its "
                "batches meet here; make it with persistent_workers=False"
            )
        self.loader = loader
        self._forward = forward
        self._digests: list[str] = []
        self._count: int | None = None
        self._passes = 0

    def __len__(self) -> int:
        assert self._count is not None, "the first pass tells"
        return self._count

    @property
    def digest(self) -> str:
        """A hash of the values of all batches in order."""
        return hashlib.blake2b("".join(self._digests).encode(), digest_size=16).hexdigest()

    @property
    def digests(self) -> tuple[str, ...]:
        """A hash of each batch's values."""
        return tuple(self._digests)

    def first_pass(self) -> Iterator[Any]:
        """All batches, whose number and values are noted.

        Raises:
            RuntimeError: If the loader raises an exception.
            ValueError: If there is none.
        """
        if self._count is not None:
            yield from self._same()
            return
        for inputs in self.start():
            self._digests.append(digest(inputs))
            yield inputs
        if not self._digests:
            raise ValueError(
                f"the {type(self.loader).__name__} yields no batch; pass one with at least one batch"
            )
        self._count = len(self._digests)
        # What is drawn at random shows itself here already.
        Reader(self).get(0)

    def _same(self) -> Iterator[Any]:
        """All batches once more."""
        reader = Reader(self)
        for number in range(len(self)):
            yield reader.get(number)

    def start(self) -> Iterator[Any]:
        """A pass over the batches as the model is called with them.

        Raises:
            RuntimeError: If the loader raises an exception.
        """
        self._passes += 1
        run = self._passes
        # Random numbers of the loader's are others in every pass, and none of the caller's.
        state = torch.Generator().manual_seed(run).get_state()
        batches: Any = None
        number = 0
        while True:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                try:
                    batches = iter(self.loader) if batches is None else batches
                    batch = next(batches)
                except StopIteration:
                    return
                except Exception as error:
                    raise RuntimeError(
                        f"the {type(self.loader).__name__} failed at batch {number} of pass {run} "
                        f"({type(error).__name__}: {first_line(error)}); look into the loader or its dataset"
                    ) from error
                state = torch.get_rng_state()
            yield as_inputs(inputs_of(batch, self._forward))
            number += 1

    def check(self, number: int, inputs: Any) -> None:
        """Refuses a batch that is another than in the first pass.

        Raises:
            ValueError: If its values differ.
        """
        if digest(inputs) != self._digests[number]:
            raise ValueError(
                f"batch {number} of the {type(self.loader).__name__} has other values than at first; "
                + _OTHER_DATA
            )


class Reader:
    """A place in the data: batches by number, read on from the last one, or from the start.

    Args:
        batches: The data, after its first pass.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._pass: Iterator[Any] | None = None
        self._next = 0

    def get(self, number: int) -> Any:
        """A batch, which is not kept.

        Raises:
            RuntimeError: If the loader raises an exception.
            ValueError: If the pass brings other data than the first one, or another number of batches.
        """
        if self._pass is None or number < self._next:
            self._pass, self._next = self._batches.start(), 0
        inputs = None
        while self._next <= number:
            inputs = self._read()
        return inputs

    def _read(self) -> Any:
        assert self._pass is not None
        count, number = len(self._batches), self._next
        inputs = next(self._pass, None)
        if inputs is None:
            raise ValueError(
                f"the {type(self._batches.loader).__name__} ended after {number} batches in a later pass, "
                f"and had {count} in the first; pass one that yields all of its batches whenever it is run"
            )
        self._batches.check(number, inputs)
        self._next += 1
        if self._next == count:
            if next(self._pass, None) is not None:
                raise ValueError(
                    f"the {type(self._batches.loader).__name__} goes on after {count} batches in a later "
                    "pass, where it ended in the first; " + _OTHER_DATA
                )
            self._pass = None
        return inputs


def moved(inputs: Any, device: torch.device) -> Any:
    """The inputs on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
