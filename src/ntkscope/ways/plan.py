"""Which way to take: counts of flops, bytes and calls, turned into seconds by a few short timings.

Nothing here runs a model. A plan lists every way to a number with its predicted
time, and the choice is the cheapest; ``NTK.explain()`` prints it.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Machine", "Plan", "Sizes", "Way", "exact_kernel_ways", "plan", "trace_ways"]

# Probes that the per-sample trace is expected to need for 1%, and products a sketch needs for it.
_PROBES_FOR_ONE_PERCENT = 8
_PRODUCTS_FOR_ONE_PERCENT = 60


@dataclass(frozen=True)
class Machine:
    """What the device does in a second, by short timings.

    Attributes:
        flops: Floating-point operations of matrix products.
        elements: Numbers written by elementwise operations.
        call: Seconds that one tensor operation takes at least.
    """

    flops: float
    elements: float
    call: float

    @classmethod
    @functools.cache
    def timed(cls, device: torch.device, dtype: torch.dtype) -> Machine:
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
        return cls(2 * size**3 / product, wide.numel() / elementwise, call)

    def seconds(self, flops: float, elements: float, calls: float) -> float:
        """Predicted time of work with these counts."""
        return flops / self.flops + elements / self.elements + calls * self.call


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Sizes:
    """The counts of a problem.

    Attributes:
        n: Size of the state.
        p: Number of parameters.
        batch: Samples, or 1 if they are coupled.
        outputs: State of one sample.
        operations: Tensor operations of one forward pass of the batch.
        elements: Numbers that it writes.
        flops: Its floating-point operations.
        taps: Numbers in all output gradients of one sample and probe, where the layers are known.
        gradient_flops: Work of the parameter gradients' norms of one sample and probe.
        general: Parameters that take the general way.
        used: Parameters in all operations together, one that is used twice counted twice.
        pieces: Parts of the state that are pulled back on their own.
        kernels: Kernels that are measured together.
        budget: Bytes to work in.
        itemsize: Bytes of a number.
    """

    n: int
    p: int
    batch: int
    outputs: int
    operations: int
    elements: int
    flops: int
    taps: int = 0
    gradient_flops: float = 0.0
    general: int = 0
    used: int = 0
    pieces: int = 1
    kernels: int = 1
    budget: int = 1 << 30
    itemsize: int = 4


@dataclass(frozen=True)
class Way:
    """One way to a number.

    Attributes:
        name: As it appears in an Estimate's ``method``.
        words: What it does.
        seconds: Predicted time.
        exact: Whether its result is exact.
        why_not: Why it cannot be taken; empty if it can.
    """

    name: str
    words: str
    seconds: float
    exact: bool = False
    why_not: str = ""


@dataclass(frozen=True)
class Plan:
    """All the ways to a number, and the one that is taken."""

    quantity: str
    ways: tuple[Way, ...]
    choice: Way
    reason: str

    def __str__(self) -> str:
        lines = [f"{self.quantity}: {self.choice.name}, because {self.reason}.", ""]
        for way in sorted(self.ways, key=lambda way: (bool(way.why_not), way.seconds)):
            mark = "→" if way is self.choice else " "
            cost = f"about {_duration(way.seconds)}" if not way.why_not else f"not here: {way.why_not}"
            lines.append(f" {mark} {way.name:<22} {way.words}; {cost}")
        return "\n".join(lines)


def plan(quantity: str, ways: list[Way], *, exact_only: bool = False) -> Plan:
    """Chooses the cheapest way that can be taken.

    Args:
        quantity: What is measured.
        ways: The ways to it.
        exact_only: Leave out estimates.
    """
    possible = [way for way in ways if not way.why_not and (way.exact or not exact_only)]
    choice = min(possible, key=lambda way: way.seconds)
    others = [way for way in possible if way is not choice]
    if not others:
        return Plan(quantity, tuple(ways), choice, "it is the only way here")
    runner_up = min(others, key=lambda way: way.seconds)
    ratio = runner_up.seconds / max(choice.seconds, 1e-12)
    reason = f"it is predicted {ratio:.2g} times faster than {runner_up.name}"
    return Plan(quantity, tuple(ways), choice, reason)


def trace_ways(sizes: Sizes, machine: Machine, rtol: float, why_no_structure: str = "") -> list[Way]:
    """The ways to a trace: exact ones, and estimates to a relative tolerance."""
    growth = max(1.0, (0.01 / rtol) ** 2)
    probes = math.ceil(_PROBES_FOR_ONE_PERCENT * growth)
    products = math.ceil(_PRODUCTS_FOR_ONE_PERCENT * growth)
    per_sample = functools.partial(_per_sample_seconds, sizes, machine)
    return [
        Way(
            "exact (per sample)",
            f"{sizes.outputs:,} one-hot probes a sample",
            per_sample(sizes.outputs, sizes.pieces),
            exact=True,
            why_not=why_no_structure,
        ),
        Way(
            "exact (n VJPs)",
            f"{sizes.n:,} reverse products",
            _vjp_seconds(sizes, machine, sizes.n),
            exact=True,
        ),
        Way(
            "exact (p JVPs)",
            f"{sizes.p:,} forward products",
            _jvp_seconds(sizes, machine, sizes.p),
            exact=True,
        ),
        Way(
            "per-sample",
            f"random signs for every sample, about {probes:,} for {rtol:.2g}",
            per_sample(probes, 1),
            why_not=why_no_structure,
        ),
        Way(
            "per-sample-forward",
            f"random parameter directions for every sample, about {probes:,} for {rtol:.2g}",
            _per_sample_forward_seconds(sizes, machine, probes),
            why_not=why_no_structure,
        ),
        Way(
            "products",
            f"the kernel's products with random signs, about {products:,} for {rtol:.2g}",
            _vjp_seconds(sizes, machine, products) + _jvp_seconds(sizes, machine, products),
        ),
    ]


def exact_kernel_ways(sizes: Sizes, machine: Machine, rtol: float, why_no_structure: str = "") -> list[Way]:
    """The ways to norms, alignments and effective ranks."""
    m, n, p = sizes.kernels, sizes.n, sizes.p
    products = math.ceil(_PRODUCTS_FOR_ONE_PERCENT * max(1.0, 0.01 / rtol))
    tile_width = sizes.taps + sizes.general
    tiles = m * machine.seconds(n**2 * tile_width, n**2 * 2.0, 0)
    rows = m * machine.seconds(n**2 * p, n**2 / 2, 0)
    whole = m * _vjp_seconds(sizes, machine, n)
    fits = sizes.itemsize * p * p <= sizes.budget
    sketch = m * (_vjp_seconds(sizes, machine, products) + _jvp_seconds(sizes, machine, products))
    return [
        Way(
            "exact (tiles)",
            f"every entry of K by layer factors, {n:,}² in tiles",
            tiles + m * _per_sample_seconds(sizes, machine, sizes.outputs, 1),
            exact=True,
            why_not=why_no_structure,
        ),
        Way(
            "exact (rows)",
            f"{n:,} rows of J by reverse products, multiplied in tiles",
            whole + rows,
            exact=True,
        ),
        Way(
            "exact (parameters)",
            f"JᵀJ, {p:,}², in place of JJᵀ",
            whole + m**2 * machine.seconds(2.0 * n * p * p, 0, 0),
            exact=True,
            why_not="" if fits else f"{p:,}² numbers do not fit the memory budget",
        ),
        Way(
            "products", f"the kernel's products with random signs, about {products:,} for {rtol:.2g}", sketch
        ),
    ]


def _per_sample_seconds(sizes: Sizes, machine: Machine, probes: int, pieces: int) -> float:
    """Forward pass with taps, backward passes without weight gradients, and the gradients' norms."""
    work = probes * sizes.batch
    chunk_bytes = sizes.itemsize * work * max(3 * sizes.taps + sizes.general, 1)
    passes = max(pieces, math.ceil(chunk_bytes / max(sizes.budget / 2, 1)))
    # Of all the steps of a recurrence, half lie before an output on average.
    share = 0.5 if pieces > 1 else 1.0
    backward = probes * (sizes.flops + sizes.batch * 2 * sizes.gradient_flops) * share
    written = probes * (2 * sizes.elements + sizes.batch * (sizes.taps + sizes.general)) * share
    calls = 3 * sizes.operations * (1 + passes * share)
    return machine.seconds(sizes.flops + backward, sizes.elements + written, calls)


def _per_sample_forward_seconds(sizes: Sizes, machine: Machine, probes: int) -> float:
    """A forward pass whose tangents take two products a layer, one with the sample's own direction."""
    tangents = probes * sizes.batch * sizes.p
    chunk_bytes = sizes.itemsize * probes * (2 * sizes.batch * sizes.p + 3 * sizes.elements)
    passes = math.ceil(chunk_bytes / max(sizes.budget, 1))
    # Signs are drawn and turned into numbers, and every use of a parameter reads its direction.
    written = probes * 3 * sizes.elements + 3 * tangents + probes * sizes.batch * sizes.used
    # Before the first probes, forward mode is checked by one product and its transpose.
    calls = 4 * sizes.operations * (passes + 1)
    return machine.seconds(sizes.flops * (5 + 2.0 * probes), 3 * sizes.elements + written, calls)


def _vjp_seconds(sizes: Sizes, machine: Machine, count: int) -> float:
    calls = 2 * sizes.operations * math.ceil(count / 64)
    return machine.seconds(2.0 * sizes.flops * count, (2.0 * sizes.elements + 2 * sizes.p) * count, calls)


def _jvp_seconds(sizes: Sizes, machine: Machine, count: int) -> float:
    calls = 3 * sizes.operations * math.ceil(count / 64)
    return machine.seconds(2.0 * sizes.flops * count, (3.0 * sizes.elements + sizes.p) * count, calls)


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
