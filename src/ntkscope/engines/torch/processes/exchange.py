"""What processes tell each other: whose samples are whose, factors of samples, small matrices, and errors.

Each process holds samples of its own, numbered one after the other by rank. Every call here is made by
all of them, in the same order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ntkscope.engines.torch.processes.parcels import pack, unpack
from ntkscope.errors import ProcessLostError
from ntkscope.operators.space import Small

__all__ = ["Exchange", "as_group"]

Found = TypeVar("Found")

# By its new name, or by that which torch before 2.13 knows it by.
_all_gather = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)


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

    def again(self) -> Exchange:
        """Between the same processes, for other samples."""
        return Exchange(self._group)

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
        with self._together():
            dist.all_gather_object(found, value, group=self._group)
        return found

    def first(self, value: Found) -> Found:
        """That of rank 0."""
        said: Found = self.objects(value if self.rank == 0 else None)[0]
        return said

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What all of them do at once.

        Raises:
            ProcessLostError: If another one does not take part.
        """
        try:
            yield
        except RuntimeError as error:
            raise ProcessLostError(
                f"process {self.rank} of {self.size} has lost another one, which has ended or failed (its "
                "own output says why); start all of them again"
            ) from error

    @functools.cached_property
    def device(self) -> torch.device:
        """Where the group's backend takes tensors."""
        is_nccl = self._group is not None and dist.get_backend(self._group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")

    def run(self, work: Callable[[], Found]) -> Found:
        """Work that each of them does for itself; where it fails on one, it is an error on all.

        Raises:
            BaseException: What this process's own work has raised.
            ValueError: If another one's has.
        """
        if self.size == 1:
            return work()
        problem, found = None, None
        try:
            found = work()
        except Exception as error:
            problem = error
        flag = torch.tensor(float(problem is not None), device=self.device)
        with self._together():
            dist.all_reduce(flag, group=self._group)
        if float(flag):
            self.agree(problem)
        return found  # type: ignore[return-value]

    def total(self, numbers: Small) -> Small:
        """The sum over all processes of small arrays of the host."""
        return np.asarray(self.sum(torch.from_numpy(numbers).to(self.device)).cpu().numpy())

    def same(self, numbers: Small) -> Small:
        """Rank 0's, of small arrays that all have computed alike: to the last bit, they decide what comes."""
        if self.size == 1:
            return numbers
        sent = torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device)
        with self._together():
            dist.broadcast(sent, group=self._group, group_src=0)
        return np.asarray(sent.cpu().numpy())

    def pass_on(self, value: Any, to: int | None, source: int | None) -> Any:
        """Sends a value with tensors in it to one process while another one's arrives.

        Args:
            value: What is sent.
            to: To whom; ``None``: nothing is.
            source: Who sends this process something; ``None``: nobody does.

        Returns:
            What has arrived.
        """
        sent = [] if to is None else pack(value, self.device)
        count = self._traded(self._lengths([sent] if sent else []), to, source, [()])
        wanted = [()] * sum(map(int, count))
        lengths = self._traded(self._lengths(sent), to, source, wanted)
        shapes = [(int(length),) for length in lengths]
        parts = self._traded(sent, to, source, shapes, torch.uint8)
        self.received += sum(len(part) for part in parts)
        return None if source is None else unpack(parts)

    def _lengths(self, things: Sequence[Any]) -> list[Tensor]:
        return [torch.tensor(len(thing), device=self.device) for thing in things]

    def _traded(
        self,
        sent: list[Tensor],
        to: int | None,
        source: int | None,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype = torch.int64,
    ) -> list[Tensor]:
        """Tensors to one and from another process."""
        found = [] if source is None else [torch.empty(s, dtype=dtype, device=self.device) for s in shapes]
        group: Any = self._group
        with self._together():
            operations = [
                dist.P2POp(dist.isend, x, group=group, group_peer=to) for x in sent if to is not None
            ]
            operations += [dist.P2POp(dist.irecv, x, group=group, group_peer=source) for x in found]
            for request in dist.batch_isend_irecv(operations) if operations else []:
                request.wait()
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
                problem = ValueError(f"process {first} of {self.size} has failed: {words[first]}")
        if problem is not None:
            raise problem

    def gather(self, x: Tensor, axis: int) -> Tensor:
        """All processes' parts side by side along the axis of the samples; (W - 1) · the largest part moves.

        Args:
            x: This process's part, of the same shape as the others' but for that axis.
            axis: Where its samples are.
        """
        return torch.cat(self.pieces(x.movedim(axis, 0), self.counts)).movedim(0, axis)

    def pieces(self, x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """All processes' tensors, by rank; (W - 1) · the largest one moves.

        Args:
            x: This process's, of the same shape as the others' but for the first axis.
            lengths: Their lengths along that.
        """
        if self.size == 1:
            return [x]
        sent, shape = _as_bytes(x, max(lengths))
        found = sent.new_empty(self.size * len(sent))
        with self._together():
            assert _all_gather is not None
            _all_gather(found, sent, group=self._group)
        self.received += (self.size - 1) * len(sent)
        return _from_bytes(list(found.chunk(self.size)), x.dtype, shape, lengths)

    def gather_at(self, rank: int, x: Tensor, axis: int) -> Tensor | None:
        """The same at one process alone, and nothing at the others."""
        if self.size == 1:
            return x
        sent, shape = _as_bytes(x.movedim(axis, 0), max(self.counts))
        found = [torch.empty_like(sent) for _ in range(self.size)] if rank == self.rank else None
        with self._together():
            dist.gather(sent, found, group=self._group, group_dst=rank)
        if found is None:
            return None
        self.received += (self.size - 1) * len(sent)
        return torch.cat(_from_bytes(found, x.dtype, shape, self.counts)).movedim(0, axis)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes; 2 (W - 1)/W of its size moves."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        with self._together():
            dist.all_reduce(total, group=self._group)
        self.received += 2 * (self.size - 1) * total.nbytes // self.size
        return total


def _as_bytes(x: Tensor, length: int) -> tuple[Tensor, tuple[int, ...]]:
    """As bytes, as many on every process, and the shape of what they are."""
    own = x.detach().contiguous()
    if len(own) < length:
        own = torch.cat([own, own.new_zeros(length - len(own), *own.shape[1:])])
    # Not every backend knows every dtype.
    return own.reshape(-1).view(torch.uint8), tuple(own.shape)


def _from_bytes(
    parts: Sequence[Tensor], dtype: torch.dtype, shape: tuple[int, ...], lengths: Sequence[int]
) -> list[Tensor]:
    pairs = zip(parts, lengths, strict=True)
    return [part.view(dtype).reshape(shape)[:length] for part, length in pairs]


def as_group(group: Any) -> Any:
    """The process group that a user names: one of torch's, or ``"world"``; ``None`` for none.

    Raises:
        TypeError: If it is neither.
        ValueError: If torch.distributed is not set up, or this process is not in the group.
    """
    if group is None:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group= names processes, and torch.distributed is not set up; call "
            "torch.distributed.init_process_group() first, under torchrun"
        )
    found = dist.group.WORLD if group == "world" else group
    if not isinstance(found, dist.ProcessGroup):
        raise TypeError(
            f"group must be a process group of torch.distributed or 'world', found {type(group).__name__}"
        )
    if dist.get_rank(found) < 0:
        raise ValueError("this process is not in the group; make the kernel on the group's processes alone")
    return found
