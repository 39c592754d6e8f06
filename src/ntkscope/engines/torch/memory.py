"""Work in chunks that fit a memory budget, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ntkscope.engines.torch.meter import is_out_of_memory

__all__ = ["DEFAULT_BUDGET", "Chunks"]

#: Bytes that one step of work may take where the caller says nothing.
DEFAULT_BUDGET = 1 << 30

# A chunk this large no longer gains from being larger: the work spills out of the caches.
_CACHE_BYTES = 64 << 20
# But small problems are bound by the overhead of each call, down to chunks of this many.
_SMALLEST_EFFICIENT = 64


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

    def run(self, start: int, stop: int, work: Callable[[int, int], None]) -> None:
        """Calls ``work(i, j)`` for consecutive ranges from start to stop.

        Raises:
            MemoryError: If a single item does not fit.
        """
        for first, last in self.ranges(start, stop):
            self._attempt(first, last, work)

    def ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The consecutive ranges from start to stop."""
        while start < stop:
            last = min(start + self.size, stop)
            yield start, last
            start = last

    def _attempt(self, start: int, stop: int, work: Callable[[int, int], None]) -> None:
        try:
            work(start, stop)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if stop - start == 1:
                raise MemoryError(
                    "a single product does not fit into memory; measure fewer samples at once, "
                    "or a model of lower precision"
                ) from error
        # Outside the handler, so that the failed attempt's tensors are freed first.
        self.size = max(1, (stop - start) // 2)
        for first, last in self.ranges(start, stop):
            self._attempt(first, last, work)
