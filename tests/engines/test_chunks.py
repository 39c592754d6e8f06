"""How much is worked on at once: sizes from a budget, and less of it where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ntkscope import NTK
from ntkscope.engines.torch.jacobian import Jacobian
from ntkscope.engines.torch.memory import Chunks, Portions, is_out_of_memory, samples_and_probes, take_half
from zoo import BY_NAME

OUT_OF_MEMORY: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "python": MemoryError,
    "linux": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
}  # fmt: skip
each_error = pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)

# What it says of halved sizes has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore:memory ran out:RuntimeWarning")


class Work:
    """Keeps the ranges that were done, and fails on those that are too long."""

    def __init__(self, most: int, error: Callable[[], Exception]) -> None:
        self.most = most
        self.error = error
        self.done: list[tuple[int, int]] = []
        self.failures = 0

    def __call__(self, start: int, stop: int) -> None:
        if stop - start > self.most:
            self.failures += 1
            raise self.error()
        self.done.append((start, stop))


def test_a_budget_limits_a_chunk_and_one_item_is_the_least() -> None:
    assert Chunks(1 << 20, budget=1 << 30).size == 64
    assert Chunks(1 << 20, budget=10 << 20).size == 10
    assert Chunks(1 << 20, budget=1).size == 1
    assert Chunks(8, budget=1 << 30).size == 8 << 20
    assert Chunks(0, budget=1 << 30).size >= 64
    assert Chunks(1 << 20, budget=1, size=7).size == 7


@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_ranges_cover_everything_once(size: int) -> None:
    work = Work(1000, MemoryError)
    Chunks(1, size=size).run(2, 12, work)
    assert [i for start, stop in work.done for i in range(start, stop)] == list(range(2, 12))
    assert max(stop - start for start, stop in work.done) == min(size, 10)
    Chunks(1, size=size).run(5, 5, work)
    assert sum(stop - start for start, stop in work.done) == 10


@each_error
def test_a_chunk_is_halved_until_it_fits_and_the_size_is_remembered(error: Callable[[], Exception]) -> None:
    work, chunks = Work(3, error), Chunks(1, size=16)
    chunks.run(0, 40, work)
    assert [i for start, stop in work.done for i in range(start, stop)] == list(range(40))
    assert chunks.size == 2
    # 16, 8 and 4 fail once each: what follows begins with the size that worked.
    assert work.failures == 3
    chunks.run(0, 6, work)
    assert work.failures == 3


def test_what_is_done_is_kept() -> None:
    calls: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> None:
        calls.append((start, stop))
        if start == 4 and stop - start > 1:
            raise MemoryError

    Chunks(1, size=4).run(0, 8, work)
    assert calls == [(0, 4), (4, 8), (4, 6), (4, 5), (5, 6), (6, 7), (7, 8)]


@each_error
def test_a_single_item_that_does_not_fit_is_an_error_with_a_remedy(error: Callable[[], Exception]) -> None:
    with pytest.raises(MemoryError, match="a single product does not fit into memory; measure fewer samples"):
        Chunks(1, size=8).run(0, 8, Work(0, error))


def test_other_errors_pass() -> None:
    work = Work(1, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Chunks(1, size=4).run(0, 8, work)
    assert work.failures == 1


# What running out of memory looks like.


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "windows", "linux"],
)  # fmt: skip
def test_running_out_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_what_this_machine_raises_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 57, dtype=torch.float64)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ValueError("not enough memory"), KeyError()])
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


# Samples and probes, and blocks.


def _portions(budget: int) -> Portions:
    return Portions(batch=10, sample=1 << 20, pair=1 << 18, piece=6, operations=1, budget=budget)


def test_work_is_begun_anew_in_smaller_portions_until_it_fits() -> None:
    portions, tries, released = _portions(1 << 30), [], []

    def work() -> int:
        tries.append(portions.of(100))
        if tries[-1] > (3, 1):
            raise MemoryError
        return len(tries)

    assert portions.run(work, 100, lambda: released.append(len(tries))) == len(tries)
    assert tries == sorted(tries, reverse=True)
    assert tries[-1] <= (3, 1)
    assert released == list(range(1, len(tries)))


@each_error
def test_a_single_sample_and_probe_that_do_not_fit_are_an_error_with_a_remedy(
    error: Callable[[], Exception],
) -> None:
    def work() -> None:
        raise error()

    with pytest.raises(MemoryError, match="a single sample with a single probe does not fit into memory"):
        _portions(1 << 30).run(work, 100, lambda: None)


def test_a_piece_that_nearly_fits_is_not_cut() -> None:
    assert _portions(1 << 30).of(4) == (10, 21)
    # Four probes are quick, the budget has room for more.
    assert Portions(batch=1, sample=0, pair=16 << 20, piece=6, operations=1, budget=1 << 30).of(4) == (1, 6)


@pytest.mark.parametrize(
    ("budget", "expected"), [(1, (1, 1)), (50, (5, 1)), (100, (10, 1)), (250, (10, 2)), (1000, (10, 10))]
)
def test_samples_come_before_probes(budget: int, expected: tuple[int, int]) -> None:
    assert samples_and_probes(10, 10.0, budget) == expected


def test_blocks_fill_half_of_the_budget() -> None:
    assert take_half(range(5), lambda item: 10, 50) == [0, 1, 2]
    assert take_half(range(5), lambda item: 10, 1) == [0]
    assert take_half(range(5), lambda item: 10, 1000) == [0, 1, 2, 3, 4]


# The products themselves.


def _limited(ntk: NTK, monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> list[int]:
    """Makes a step of the Jacobian run out of memory beyond so many rows; returns the rows of each try."""
    original = getattr(Jacobian, name)
    tries: list[int] = []

    def limited(self: Jacobian, block: Any) -> Any:
        rows = len(block if isinstance(block, torch.Tensor) else next(iter(block.values())))
        tries.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, block)

    monkeypatch.setattr(Jacobian, name, limited)
    return tries


@pytest.mark.parametrize("step", ["_pull_block", "_push_block"])
@pytest.mark.parametrize("most", [1, 3])
def test_products_survive_running_out_of_memory(
    step: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = BY_NAME["mlp"]
    ntk, jacobian, kernel = case.ntk(), case.dense().jacobian, case.dense().kernel
    z = torch.randn(ntk.n, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.randn(ntk.n_params, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tries = _limited(ntk, monkeypatch, step, most)
    torch.testing.assert_close(ntk @ z, kernel @ z)
    torch.testing.assert_close(ntk.vjp(z), jacobian.T @ z)
    torch.testing.assert_close(ntk.jvp(u), jacobian @ u)
    assert max(tries) > most
    assert tries[-1] <= most
    # Rows count once, however often they were tried.
    assert (ntk.engine.ledger.vjps, ntk.engine.ledger.jvps) == (26, 26)


def test_products_of_a_model_that_never_fits_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ntk = BY_NAME["mlp"].ntk()
    _limited(ntk, monkeypatch, "_pull_block", 0)
    with pytest.raises(MemoryError, match="a single product does not fit"):
        ntk.vjp(torch.ones(ntk.n, 3))


def test_running_out_of_memory_does_not_end_vectorization(monkeypatch: pytest.MonkeyPatch) -> None:
    ntk = BY_NAME["mlp"].ntk()
    _limited(ntk, monkeypatch, "_pull_block", 2)
    ntk.vjp(torch.ones(ntk.n, 8))
    assert ntk.engine.jacobian._pullback.is_batched
