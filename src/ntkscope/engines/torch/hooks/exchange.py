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
        if self.size == 1:
            return x
        sent, shape = self._sent(x, axis)
        found = sent.new_empty(self.size * len(sent))
        dist.all_gather_into_tensor(found, sent, group=self._group)
        self.received += (self.size - 1) * len(sent)
        return self._joined(list(found.chunk(self.size)), x.dtype, shape, axis)

    def gather_at(self, rank: int, x: Tensor, axis: int) -> Tensor | None:
        """The same at one process alone, and nothing at the others."""
        if self.size == 1:
            return x
        sent, shape = self._sent(x, axis)
        found = [torch.empty_like(sent) for _ in range(self.size)] if rank == self.rank else None
        dist.gather(sent, found, dst=dist.get_global_rank(self._group, rank), group=self._group)
        if found is None:
            return None
        self.received += (self.size - 1) * len(sent)
        return self._joined(found, x.dtype, shape, axis)

    def _sent(self, x: Tensor, axis: int) -> tuple[Tensor, tuple[int, ...]]:
        """As bytes, as many on every process, and the shape of what they are; the samples come first."""
        own, most = x.detach().movedim(axis, 0).contiguous(), max(self.counts)
        if len(own) < most:
            own = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        # Not every backend knows every dtype.
        return own.reshape(-1).view(torch.uint8), tuple(own.shape)

    def _joined(self, parts: list[Tensor], dtype: torch.dtype, shape: tuple[int, ...], axis: int) -> Tensor:
        pairs = zip(parts, self.counts, strict=True)
        whole = torch.cat([part.view(dtype).reshape(shape)[:count] for part, count in pairs])
        return whole.movedim(0, axis)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes; 2 (W - 1)/W of its size moves."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total, group=self._group)
        self.received += 2 * (self.size - 1) * total.nbytes // self.size
        return total
