"""Ctrl-C at random moments of every verb: what is known comes back, or nothing is left half-done."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK, Estimate, Measurement, estimators, penalties
from truth.reference import Dense, alignment, dense
from truth.verdict import assert_right

MOMENTS = 20


class Attentive(nn.Module):
    """Attention, a buffer that is written to, and a recurrence: what torch has switches for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.run = nn.GRU(4, 3, batch_first=True)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.run(self.layer(x))[0].mean(1)


@pytest.fixture(autouse=True)
def _ctrl_c_raises() -> Iterator[None]:
    """Tests in the background of a shell inherit that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _CtrlC:
    """Counts the calls of Python functions, and presses Ctrl-C at one of them, once."""

    def __init__(self, at: int = -1) -> None:
        self.calls, self.at = 0, at

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            self.calls += 1
            if self.calls == self.at:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    def during(self, work: Callable[[], Any]) -> Any:
        sys.setprofile(self)
        try:
            return work()
        finally:
            sys.setprofile(None)


class Subjects:
    """A model, the same after some training, and their numbers by plain autograd."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.x = Attentive().double(), torch.randn(5, 2, 4, dtype=torch.double)
        self.other = Attentive().double()
        self.first: Dense = dense(self.model, lambda: self.model(self.x))
        self.second: Dense = dense(self.other, lambda: self.other(self.x))
        self.model.calls.zero_()
        self.before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.switches = _switches()

    def ntk(self) -> NTK:
        return NTK(self.model, self.x)

    def right(self, quantity: str) -> float:
        if quantity == "alignment":
            return alignment(self.first, self.second)
        return dict(self.first.metrics())[quantity]

    def check_nothing_is_left(self, ntk: NTK | None) -> None:
        """The model and torch are as they were, and the next numbers are right."""
        assert _switches() == self.switches
        now = self.model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in self.before.items())
        assert all(parameter.grad is None for parameter in self.model.parameters())
        ntk = ntk or self.ntk()
        for estimate in (ntk.trace(method="exact"), ntk.frobenius_norm(method="exact")):
            assert_right(estimate, self.right(estimate.quantity))
        assert_right(ntk.trace("hutch++", products=9), self.first.trace)


def _switches() -> tuple[Any, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.utils.checkpoint.CheckpointFunction,
        torch.initial_seed(),
        signal.getsignal(signal.SIGINT),
        *_stacks(),
    )


def _stacks() -> tuple[Any, ...]:
    """What torch keeps a stack of: modes of functions and of operators, transformations, forward mode."""
    return (
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._functorch.peek_interpreter_stack(),
        torch.autograd.forward_ad._current_level,
    )


VERBS: dict[str, Callable[[NTK, Subjects], Any]] = {
    "trace": lambda ntk, s: ntk.trace(),
    "trace to a tolerance": lambda ntk, s: ntk.trace("hutch++", rtol=0.05),
    "per-sample trace": lambda ntk, s: ntk.trace("per-sample", rtol=0.02),
    "frobenius_norm": lambda ntk, s: ntk.frobenius_norm(),
    "sketched norm": lambda ntk, s: ntk.frobenius_norm("sketch", rtol=0.02),
    "effective_rank": lambda ntk, s: ntk.effective_rank("gram", products=30),
    "alignment": lambda ntk, s: ntk.alignment(NTK(s.other, s.x), "nystrom", rtol=0.05),
    "measure": lambda ntk, s: ntk.measure([NTK(s.other, s.x)], method="per-sample", rtol=0.05),
    "at": lambda ntk, s: ntk.at(s.model).trace(method="exact"),
    "products": lambda ntk, s: [ntk.vjp(torch.ones(ntk.n).double()), ntk @ torch.ones(ntk.n).double()],
    "dense": lambda ntk, s: ntk.to_dense(),
    "explain": lambda ntk, s: ntk.explain(),
    "penalty": lambda ntk, s: penalties.trace(s.other, s.x, probes=2),
}


def _estimates(found: Any) -> list[Estimate]:
    if isinstance(found, Measurement):
        return [estimate for _, estimate in found.rows()]
    return [found] if isinstance(found, Estimate) else []


def _is_covered(estimate: Estimate, right: float) -> bool:
    """By an interval of one error in a million: what a few products know has few degrees of freedom."""
    if estimate.stderr is None:
        return True
    low, high = estimate.interval(1 - 1e-6) if estimate.stderr else (estimate.value, estimate.value)
    return low - 1e-6 * right <= right <= high + 1e-6 * right


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_interrupted_at_random_moments(verb: str) -> None:
    subjects, work = Subjects(), VERBS[verb]
    # The first run loads parts of torch: its calls are not those of the next.
    work(subjects.ntk(), subjects)
    subjects.check_nothing_is_left(None)
    count = _CtrlC()
    count.during(lambda: work(subjects.ntk(), subjects))
    interrupted = 0
    for moment in random.Random(verb).sample(range(1, count.calls), MOMENTS):
        made: list[NTK] = []

        def all_of_it(made: list[NTK] = made) -> Any:
            made.append(subjects.ntk())
            return work(made[0], subjects)

        try:
            found = _CtrlC(moment).during(all_of_it)
        except KeyboardInterrupt:
            found = None
        interrupted += found is None or any(e.note for e in _estimates(found))
        for estimate in _estimates(found):
            assert _is_covered(estimate, subjects.right(estimate.quantity)), estimate
        subjects.check_nothing_is_left(made[0] if made else None)
    assert interrupted >= MOMENTS / 2


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["trace", "frobenius_norm", "effective_rank"])
def test_matrices_interrupted_at_random_moments(metric: str) -> None:
    rows = torch.randn(40, 60, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    matrix = rows @ rows.T
    measure = getattr(estimators, metric)
    right = measure(matrix, "exact").value
    count = _CtrlC()
    count.during(lambda: measure(matrix, rtol=0.01))
    for moment in random.Random(metric).sample(range(1, count.calls), MOMENTS):
        with contextlib.suppress(KeyboardInterrupt):
            assert _is_covered(_CtrlC(moment).during(lambda: measure(matrix, rtol=0.01)), right)
        assert measure(matrix, "exact").value == pytest.approx(right)
