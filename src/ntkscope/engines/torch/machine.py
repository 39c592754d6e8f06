"""How fast a device is, by a few short timings."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

from ntkscope.engines.base import Machine

__all__ = ["timed"]


@functools.cache
def timed(device: torch.device, dtype: torch.dtype) -> Machine:
    """Times a matrix product, an elementwise operation and an empty one, some 20 ms in all."""
    size = 512
    a = torch.ones(size, size, device=device, dtype=dtype)
    wide = torch.ones(1 << 18, device=device, dtype=dtype)
    tiny = torch.ones(1, device=device, dtype=dtype)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            _synchronize(device)
            start = time.perf_counter()
            work()
            _synchronize(device)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    product = seconds(lambda: a @ a)
    elementwise = seconds(lambda: wide * wide)
    call = seconds(lambda: [tiny * tiny for _ in range(50)]) / 50
    return Machine(2 * size**3 / product, wide.numel() / elementwise, call)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
