"""How much is worked on at once: as much as fits a budget, and less where memory runs out all the same.

Everything here speaks of bytes and of numbers of items; what the items are is the callers' business.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from ntkscope.interrupts import heed_interrupt
from ntkscope.settings import DEFAULT_BUDGET

__all__ = [
    "DEFAULT_BUDGET",
    "Chunks",
    "Portions",
    "default_budget",
    "free_on_host",
    "is_out_of_memory",
    "samples_and_probes",
    "take_half",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

# A chunk this large no longer gains from being larger: the work spills out of the caches.
_CACHE_BYTES = 64 << 20
# But small problems are bound by the overhead of each call, down to chunks of this many.
_SMALLEST_EFFICIENT = 64
# So many probes at a time are quick enough.
_FEW_PROBES = 4


# Of what is free, one step of work takes so much at most, if nothing is said.
_SHARE = 1 / 4


def default_budget(device: torch.device) -> int:
    """Bytes that one step of work may take: 1 GiB, or a quarter of what is free if that is less."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_on_host()
    return max(1, int(min(DEFAULT_BUDGET, free * _SHARE)))


def free_on_host(root: Path = Path("/")) -> float:
    """Bytes that are free for this process, within its container; inf where the system does not say so.

    Args:
        root: Of the file system.
    """
    free = math.inf
    with contextlib.suppress(OSError, ValueError):
        (kibibytes,) = re.findall(r"MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text())
        free = 1024.0 * int(kibibytes)
    group = root / "sys/fs/cgroup"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # No such files, or "max".
        with contextlib.suppress(OSError, ValueError):
            free = min(free, int((group / limit).read_text()) - int((group / used).read_text()))
    return max(free, 0.0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch says that memory ran out."""
    # The CPU's allocator raises a bare RuntimeError, with other words on Windows than elsewhere.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("not enough memory", "can't allocate memory"))
    )


def _fits(work: Callable[[], None], least: str) -> bool:
    """Does the work, and says whether memory sufficed.

    Args:
        work: What to do; it may be begun anew.
        least: What to tell where this is the least work that can be done at once; else empty.

    Raises:
        MemoryError: If the least work does not fit.
    """
    heed_interrupt()
    try:
        work()
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if least:
            raise MemoryError(least) from error
    # Callers go on outside the handler, so that the failed attempt's tensors are freed first.
    return False


def _say(what: str, now: str) -> bool:
    """One warning, however often the size is halved after it."""
    warnings.warn(
        f"{what}; going on with {now}; memory= says how much one step may take",
        RuntimeWarning,
        stacklevel=2,
    )
    return True


class Chunks:
    """Splits ranges into chunks, remembers the size that worked.

    Args:
        bytes_each: Memory that one item takes.
        budget: Memory that one chunk may take.
        size: A fixed size instead.

    Attributes:
        size: Items in the next chunk.
    """

    def __init__(self, bytes_each: float, budget: int = DEFAULT_BUDGET, size: int | None = None) -> None:
        fitting = int(budget // max(bytes_each, 1))
        efficient = max(_SMALLEST_EFFICIENT, int(_CACHE_BYTES // max(bytes_each, 1)))
        self.size = size if size is not None else max(1, min(fitting, efficient))
        self._warned = False

    def run(self, start: int, stop: int, work: Callable[[int, int], None]) -> None:
        """Calls ``work(i, j)`` for consecutive ranges from start to stop.

        Raises:
            MemoryError: If a single item does not fit.
        """
        for first, last in self.ranges(start, stop):
            self._attempt(first, last, work)

    def _warn(self, what: str, now: str) -> None:
        self._warned = self._warned or _say(what, now)

    def ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The consecutive ranges from start to stop."""
        while start < stop:
            last = min(start + self.size, stop)
            yield start, last
            start = last

    def _attempt(self, start: int, stop: int, work: Callable[[int, int], None]) -> None:
        least = (
            "a single product does not fit into memory; measure fewer samples at once, "
            "or a model of lower precision"
        )
        if not _fits(lambda: work(start, stop), least if stop - start == 1 else ""):
            self.size = max(1, (stop - start) // 2)
            self._warn(f"memory ran out with {stop - start:,} products at once", f"{self.size:,} at once")
            for first, last in self.ranges(start, stop):
                self._attempt(first, last, work)


class Portions:
    """How many samples and probes are worked on at once: as many as is quick, never over the budget.

    Args:
        batch: Samples in all.
        sample: Bytes that one sample takes.
        pair: Bytes that one sample takes for every probe.
        piece: Probes that are better worked on together.
        operations: Tensor operations of one forward pass.
        budget: Bytes that one step may take.
    """

    def __init__(
        self, *, batch: int, sample: float, pair: float, piece: int, operations: int, budget: int
    ) -> None:
        self._batch = batch
        # A state that no parameter reaches takes nothing.
        self._sample = max(sample, 1)
        self._pair = max(pair, 1)
        self._piece = piece
        self._quick = _quick_bytes(operations)
        self.budget = budget

    def of(self, probes: int) -> tuple[int, int]:
        """(samples, probes) of one step."""
        batch, sample, pair = self._batch, self._sample, self._pair
        quick = min(self.budget, self._quick)
        if batch * (sample + min(probes, _FEW_PROBES) * pair) <= quick:
            # The whole batch runs forward once and is kept; its parts would, each time.
            samples = batch
        else:
            samples = int(quick // (sample + min(probes, 64) * pair))
        if samples < 1:
            samples = int(self.budget // (sample + pair) > 0)
        samples = max(1, min(batch, samples))
        room = max(1, int((quick - samples * sample) // (samples * pair)))
        most = max(1, int((self.budget - samples * sample) // (samples * pair)))
        # A piece that nearly fits is better not cut.
        return samples, min(self._piece, most) if room < self._piece <= 2 * room else room

    def run(self, work: Callable[[], Result], probes: int, release: Callable[[], None]) -> Result:
        """The result of the work, in portions half as large each time that memory runs out.

        Args:
            work: Takes the portions from here.
            probes: How many there are in all.
            release: Called before the work is begun anew: gives back what is kept.

        Raises:
            MemoryError: If a single sample with a single probe does not fit.
        """
        least = (
            "a single sample with a single probe does not fit into memory; free some, "
            "or use a model of lower precision"
        )
        results: list[Result] = []
        warned = False
        while not _fits(lambda: results.append(work()), least if self.of(probes) == (1, 1) else ""):
            release()
            tried, self.budget = min(self.budget, self._quick), min(self.budget, self._quick) // 2
            warned = warned or _say(
                f"memory ran out with steps of {tried:,} bytes", f"steps of {self.budget:,} bytes"
            )
        return results[0]


def _quick_bytes(operations: int) -> int:
    """The size of a step that runs quickest: small for the caches, but large beside the calls' overhead.

    Measured: a residual network (67 operations) is quickest at 64 MiB, an unrolled recurrence (555
    operations) at 512 MiB.
    """
    return min(max(operations, 64), 512) << 20


def samples_and_probes(batch: int, pair: float, budget: int) -> tuple[int, int]:
    """As many samples with one probe each as fit; as many probes of all samples where those do.

    Args:
        batch: Samples in all.
        pair: Bytes of one sample with one probe.
        budget: Bytes that one step may take.
    """
    samples = max(1, min(batch, int(budget // pair)))
    return samples, max(1, int(budget // (pair * samples)))


def take_half(items: Iterable[Item], size: Callable[[Item], int], budget: int) -> list[Item]:
    """The first items, until they take half of the budget; the rest is for what is worked on beside them."""
    taken, total = [], 0
    for item in items:
        taken.append(item)
        total += size(item)
        if total > budget // 2:
            break
    return taken
