"""Packed sequences of different length: every sample on its own, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from inside import refusal
from ntkscope import NTK
from ntkscope.engines.torch.modes import plain_recurrences
from ntkscope.engines.torch.packed import PackedAlone
from ntkscope.engines.torch.recurrences import Lengths

LENGTHS = torch.tensor([5, 3, 3, 2, 1])
KINDS: dict[str, Any] = {
    "gru": lambda: nn.GRU(3, 4, batch_first=True),
    "rnn": lambda: nn.RNN(3, 4, batch_first=True),
    "relu": lambda: nn.RNN(3, 4, nonlinearity="relu", bias=False, batch_first=True),
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "two layers both ways": lambda: nn.GRU(3, 4, 2, bidirectional=True, batch_first=True),
    "lstm both ways": lambda: nn.LSTM(3, 4, bidirectional=True, batch_first=True),
    "projected": lambda: nn.LSTM(3, 4, 2, bias=False, proj_size=2, bidirectional=True, batch_first=True),
}


class Model(nn.Module):
    """A recurrent layer over packed sequences.

    Args:
        layer: It.
        state: What of its result is the state: ``"padded"``, ``"last"`` or ``"both"`` states of the end.
        options: Of packing and padding.
    """

    def __init__(self, layer: nn.Module, state: str, **options: Any) -> None:
        super().__init__()
        self.layer, self.state = layer, state
        defaults = {"total": None, "ordered": False, "value": 0.0}
        self.total, self.ordered, self.value = (defaults | options).values()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=self.ordered)
        found, last = self.layer(packed)
        if self.state == "padded":
            # Each step on its own, by what is packed.
            found = PackedSequence(found.data.sin(), *found[1:])
            padded, again = pad_packed_sequence(
                found, batch_first=True, total_length=self.total, padding_value=self.value
            )
            return torch.cat([padded.flatten(1), again.to(padded).unsqueeze(1) * padded[:, 0]], dim=1)
        states = last if isinstance(last, tuple) else (last,)
        return torch.cat([state.transpose(0, 1).flatten(1) for state in states], dim=1)


def _inputs(order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    lengths = LENGTHS if order is None else LENGTHS[order]
    # What is in the padding is nothing that a model sees.
    padding = torch.arange(6).unsqueeze(0) >= lengths.unsqueeze(1)
    return x.masked_fill(padding.unsqueeze(2), torch.nan), lengths


def _kernel(model: nn.Module, *inputs: Tensor) -> Tensor:
    parameters = list(model.parameters())
    rows = [
        torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        for one in model(*inputs).flatten()
    ]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    return jacobian @ jacobian.T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["padded", "last"])
def test_every_row_is_that_of_autograd(kind: str, state: str) -> None:
    inputs = _inputs(torch.tensor([2, 0, 4, 1, 3]))
    torch.manual_seed(0)
    model = Model(KINDS[kind](), state).double()
    ntk = NTK(model, inputs)
    assert refusal(ntk) == ""
    assert ntk.engine.samples().batch == 5  # type: ignore[union-attr]
    torch.testing.assert_close(ntk.to_dense(), _kernel(model, *inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"total": 8}, {"ordered": True}, {"value": -1.0}], ids=str)
def test_options_of_packing_and_padding(options: dict[str, Any]) -> None:
    inputs = _inputs()
    torch.manual_seed(0)
    model = Model(KINDS["gru"](), "padded", **options).double()
    ntk = NTK(model, inputs)
    assert refusal(ntk) == ""
    torch.testing.assert_close(ntk.to_dense(), _kernel(model, *inputs), rtol=1e-10, atol=1e-12)
    assert ntk.frobenius_norm("exact").value == pytest.approx(
        float(_kernel(model, *inputs).norm()), rel=1e-10
    )


def test_a_sum_over_all_that_is_packed_couples_the_samples() -> None:
    class Sum(Model):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            found, last = self.layer(packed)
            return last[0] + found.data.sum()

    inputs = _inputs()
    torch.manual_seed(0)
    model = Sum(KINDS["gru"](), "last").double()
    ntk = NTK(model, inputs)
    assert "depends on the other samples" in refusal(ntk)
    torch.testing.assert_close(ntk.to_dense(), _kernel(model, *inputs), rtol=1e-10, atol=1e-12)


def test_another_batch_has_its_own_lengths() -> None:
    torch.manual_seed(0)
    model = Model(KINDS["gru"](), "padded").double()
    NTK(model, _inputs()).trace("exact")
    x, _ = _inputs()
    for other in (torch.tensor([1, 5, 2, 2, 4]), torch.tensor([3, 3, 3, 3, 3])):
        ntk = NTK(model, (x.nan_to_num(1.0), other))
        assert refusal(ntk) == ""
        expected = _kernel(model, x.nan_to_num(1.0), other)
        torch.testing.assert_close(ntk.to_dense(), expected, rtol=1e-10, atol=1e-12)


def test_turned_sequences_turn_back() -> None:
    x = torch.randn(6, 5, 2)
    lengths = Lengths(LENGTHS, 6)
    torch.testing.assert_close(lengths.turned(lengths.turned(x)), x)
    for sample, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(lengths.turned(x)[:length, sample], x[:length, sample].flip(0))
        torch.testing.assert_close(lengths.last(x)[sample], x[length - 1, sample])


def test_several_sequences_of_one_sample() -> None:
    x, lengths = _inputs()
    torch.manual_seed(0)
    layer = KINDS["lstm both ways"]().double()
    found, (last, memory) = layer(pack_padded_sequence(x, lengths, batch_first=True))
    expected = pad_packed_sequence(found, batch_first=True)[0], last, memory
    with PackedAlone((5,)), plain_recurrences():
        ours, (last, memory) = layer(pack_padded_sequence(x, lengths, batch_first=True))
        assert len(ours.data) == 30
        padded, again = pad_packed_sequence(ours, batch_first=True)
    torch.testing.assert_close((padded, last, memory), expected)
    assert again.equal(lengths)
