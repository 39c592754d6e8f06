"""Two kernels in two threads give the numbers of one, and torch's switches are put back."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ntkscope import NTK, Estimate
from truth.reference import dense
from truth.verdict import assert_right

#: Seconds that a thread waits for another one; one that holds a lock is never joined there.
_PATIENCE = 0.05


class Meets(nn.Module):
    """A layer whose forward pass waits for a second thread to be inside as well."""

    def __init__(self, layer: nn.Module, enter: threading.Event, leave: threading.Event) -> None:
        super().__init__()
        self.layer = layer
        self.meeting = [enter, leave]

    def __deepcopy__(self, memo: object) -> Meets:
        return Meets(copy.deepcopy(self.layer, memo), *self.meeting)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        enter, leave = self.meeting
        enter.set()
        leave.wait(_PATIENCE)
        result = self.layer(x)
        return result[0] if isinstance(result, tuple) else result


@pytest.fixture(autouse=True)
def switches_put_back() -> Iterator[None]:
    """What one test leaves switched off must not reach the next."""
    fastpath, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    yield
    torch.backends.mha.set_fastpath_enabled(fastpath)
    torch.backends.mkldnn.enabled = mkldnn  # type: ignore[assignment]


def _together(works: list[Callable[[], object]]) -> list[object]:
    results: list[object] = [None] * len(works)

    def run(number: int) -> None:
        results[number] = works[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_fast_path_of_attention_is_put_back() -> None:
    """The first thread enters first and leaves first, so that each would put back what the other set."""
    first_in, second_in = threading.Event(), threading.Event()
    torch.manual_seed(0)
    x = torch.randn(2, 3, dtype=torch.double)
    first = Meets(nn.Linear(3, 2).double(), first_in, second_in)
    second = Meets(nn.Linear(3, 2).double(), second_in, threading.Event())

    def late() -> object:
        first_in.wait(1)
        return NTK(second, x)

    _together([lambda: NTK(first, x), late])
    assert torch.backends.mha.get_fastpath_enabled()


def test_mkldnn_is_put_back() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, dtype=torch.double)
    kernels = [NTK(nn.LSTM(3, 2, batch_first=True).double(), x, outputs=lambda y: y[0]) for _ in range(2)]
    before = torch.backends.mkldnn.enabled
    _together([lambda k=k: [k.vjp(torch.ones(k.n)) for _ in range(5)] for k in kernels])
    assert torch.backends.mkldnn.enabled == before


def test_numbers_in_two_threads() -> None:
    torch.manual_seed(0)
    models = [
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
        nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True).double(),
    ]
    inputs = [torch.randn(3, 3, dtype=torch.double), torch.randn(2, 2, 4, dtype=torch.double)]
    rights = [dense(m, lambda m=m, x=x: m(x)) for m, x in zip(models, inputs, strict=True)]

    def work(number: int) -> list[Estimate]:
        ntk = NTK(models[number], inputs[number])
        return [ntk.trace(method="exact"), ntk.trace(method="hutch++", products=9)]

    for _ in range(2):
        found = _together([lambda n=n: work(n) for n in range(2)])
        for estimates, right in zip(found, rights, strict=True):
            for estimate in estimates:  # type: ignore[attr-defined]
                assert_right(estimate, right.trace)


def test_two_threads_with_one_model() -> None:
    """Two moments of one model, measured at once."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(3, 3).double()
    rights, kernels = [], []
    for _ in range(2):
        rights.append(dense(model, lambda: model(x)).trace)
        kernels.append(NTK(model, x))
        with torch.no_grad():
            model[0].weight.mul_(1.5)
    found = _together([lambda k=k: [k.trace(method="exact") for _ in range(4)] for k in kernels])
    for estimates, right in zip(found, rights, strict=True):
        for estimate in estimates:  # type: ignore[attr-defined]
            assert_right(estimate, right)
