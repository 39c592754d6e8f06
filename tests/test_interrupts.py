"""Ctrl-C is heeded between passes, a second one at once; what others have made of the signal stays."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.interrupts import heed_interrupt, uninterrupted


@pytest.fixture(autouse=True)
def _ctrl_c_raises() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_raised_where_the_outermost_context_ends() -> None:
    steps = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                _press()
                steps.append("inner")
            steps.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_raised_where_it_is_heeded() -> None:
    steps = []

    def work() -> None:
        with uninterrupted():
            heed_interrupt()
            _press()
            steps.append("pressed")
            heed_interrupt()
            steps.append("heeded")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["pressed"]


def test_a_caught_one_is_not_raised_again() -> None:
    with uninterrupted():
        _press()
        with pytest.raises(KeyboardInterrupt):
            heed_interrupt()
        heed_interrupt()


def test_a_second_one_is_raised_at_once() -> None:
    steps = []

    def work() -> None:
        with uninterrupted():
            _press()
            steps.append("once")
            _press()
            steps.append("twice")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["once"]


def test_an_error_inside_does_not_hide_it() -> None:
    def work() -> None:
        with uninterrupted():
            _press()
            raise ValueError("of the pass")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_signal_that_is_not_pythons_is_left(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is handler


def test_handlers_of_others_are_called_and_kept() -> None:
    """One that was there before is called afterwards; one that comes inside stays."""
    heard: list[str] = []

    def hearing(name: str) -> Callable[..., None]:
        return lambda number, frame: heard.append(name)

    before, inside = hearing("before"), hearing("inside")
    signal.signal(signal.SIGINT, before)
    with uninterrupted():
        _press()
        assert not heard
        signal.signal(signal.SIGINT, inside)
        _press()
    assert heard == ["inside", "before"]
    assert signal.getsignal(signal.SIGINT) is inside


def test_other_threads_change_nothing() -> None:
    seen: list[Any] = []

    def work() -> None:
        with uninterrupted():
            heed_interrupt()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class _Pressed(nn.Module):
    """Ctrl-C comes within one of its forward passes, which runs on to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.count = nn.Linear(3, 2).double(), SimpleNamespace(left=0, ended=0)

    def forward(self, x: Tensor) -> Tensor:
        self.count.left -= 1
        if self.count.left == 0:
            _press()
        found = torch.tanh(self.layer(x))
        self.count.ended += 1
        return found


@pytest.mark.parametrize("batch_dim", [0, None])
def test_a_pass_runs_to_its_end(batch_dim: int | None) -> None:
    model = _Pressed()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    right = NTK(model, x, batch_dim=batch_dim).trace(method="exact").value
    model.count.left, model.count.ended = 2, 0
    with pytest.raises(KeyboardInterrupt):
        NTK(model, x, batch_dim=batch_dim).trace(method="exact")
    assert model.count.ended >= 2
    assert NTK(model, x, batch_dim=batch_dim).trace(method="exact").value == pytest.approx(right, rel=1e-12)


def test_a_run_that_is_pressed_keeps_what_it_knows() -> None:
    """As Ctrl-C does outside of passes: the estimate so far, and a note."""
    model = _Pressed()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    ntk, looks = NTK(model, x, batch_dim=None), [0]

    def progress(*state: Any) -> None:
        looks[0] += 1
        if looks[0] == 2:
            _press()

    found = ntk.trace("hutch++", rtol=1e-9, max_products=6, progress=progress)
    assert found.converged is False
    assert "interrupted" in found.note
