"""What processes tell each other: whose samples are whose, factors of samples, small matrices, and errors.

Each process holds samples of its own, numbered one after the other by rank. Every call here is made by
all of them, in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Exchange"]


class Exchange:
    """The processes that share a model, each with its own samples; one process alone moves nothing.

    Args:
        group: Of ``torch.distributed``; ``None`` for one process.

    Attributes:
        rank: This process.
        size: Number of processes W.
        counts: Samples of each, after :meth:`share`.
        received: Bytes that this process has got from the others.
    """

    counts: tuple[int, ...]

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.received = 0

    def share(self, batch: int) -> None:
        """Tells the others how many samples this process has."""
        self.counts = tuple(self.objects(batch))

    @property
    def batch(self) -> int:
        """Samples of all processes."""
        return sum(self.counts)

    @property
    def own(self) -> range:
        """The numbers of this process's samples among all of them."""
        start = sum(self.counts[: self.rank])
        return range(start, start + self.counts[self.rank])

    def objects(self, value: Any) -> list[Any]:
        """The small values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def agree(self, problem: BaseException | None) -> None:
        """Raises on all processes what one of them has found, so that none waits for another.

        Raises:
            BaseException: This process's own problem.
            ValueError: For another one's.
        """
        if self.size > 1:
            words = self.objects(None if problem is None else f"{type(problem).__name__}: {problem}")
            first = next((rank for rank, text in enumerate(words) if text is not None), None)
            if problem is None and first is not None:
                raise ValueError(f"process {first} of {self.size} has failed: {words[first]}")
        if problem is not None:
            raise problem

    def gather(self, x: Tensor, axis: int) -> Tensor:
        """All processes' parts side by side along the axis of the samples; (W - 1) · the largest part moves.

        Args:
            x: This process's part, of the same shape as the others' but for that axis.
            axis: Where its samples are.
        """
        return self.side_by_side(x, axis, self.counts)

    def side_by_side(self, x: Tensor, axis: int, counts: tuple[int, ...]) -> Tensor:
        """The same of anything that each process has so many of."""
        if self.size == 1:
            return x
        most = max(counts)
        own = x.detach().movedim(axis, 0).contiguous()
        if len(own) < most:
            own = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        # As bytes: not every backend knows every dtype.
        flat = own.reshape(-1).view(torch.uint8)
        found = flat.new_empty(self.size * len(flat))
        dist.all_gather_into_tensor(found, flat, group=self._group)
        self.received += (self.size - 1) * len(flat)
        parts = found.view(own.dtype).reshape(self.size, *own.shape)
        every = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return every.movedim(0, axis)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes; 2 (W - 1)/W of its size moves."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total, group=self._group)
        self.received += 2 * (self.size - 1) * total.nbytes // self.size
        return total

    def shares(self, count: int) -> tuple[int, ...]:
        """So many pieces of work, as even as can be: how many each process does, one after the other."""
        least, more = divmod(count, self.size)
        return tuple(least + (rank < more) for rank in range(self.size))
