"""Sequences in plain torch: recurrences, packed or not, and convolutions over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.gallery_models.base import Parts, entry

_FEW = {"steps": 3, "batch": 2, "inputs": 2, "hidden": 3}


@entry(
    "RNN",
    "recurrent",
    "Time comes first: `batch_dim=1`. A weight is used in every step and counts once.",
    small=_FEW,
)
def rnn(steps: int = 50, batch: int = 15, inputs: int = 10, hidden: int = 64) -> Parts:
    model = nn.RNN(inputs, hidden)
    options = {"outputs": lambda y: y[0], "batch_dim": 1}
    return model, torch.randn(steps, batch, inputs), options


@entry(
    "GRU",
    "recurrent",
    "The module returns a tuple: `outputs=` picks the hidden units. Fused kernels have no double backward; "
    "the recorded graph is the same cell, unrolled.",
    small=_FEW,
)
def gru(steps: int = 50, batch: int = 15, inputs: int = 10, hidden: int = 64) -> Parts:
    model = nn.GRU(inputs, hidden)
    options = {"outputs": lambda y: y[0], "batch_dim": 1}
    return model, torch.randn(steps, batch, inputs), options


@entry(
    "LSTM, two layers, both directions",
    "recurrent",
    "The initial state has its samples along axis 1, the input along axis 0: `batch_dim=(0, 1)`.",
    small=_FEW,
)
def lstm(steps: int = 50, batch: int = 15, inputs: int = 10, hidden: int = 32) -> Parts:
    model = nn.LSTM(inputs, hidden, num_layers=2, bidirectional=True, batch_first=True)
    start = (torch.randn(4, batch, hidden), torch.randn(4, batch, hidden))
    options = {"outputs": lambda y: y[0], "batch_dim": (0, 1)}
    return model, (torch.randn(batch, steps, inputs), start), options


class Tagger(nn.Module):
    """Sequences of different length, packed."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.head(hidden)


@entry(
    "GRU on packed sequences",
    "recurrent",
    "A packed sequence has no axis of samples: one sample runs over all steps, and its length is a value.",
    small=_FEW,
    shown=(Tagger,),
)
def packed(steps: int = 20, batch: int = 16, inputs: int = 10, hidden: int = 32) -> Parts:
    model = Tagger(inputs, hidden)
    lengths = torch.randint(1, steps + 1, (batch,))
    return model, (torch.randn(batch, steps, inputs), lengths), {}


class TemporalBlock(nn.Module):
    """A causal convolution over time with weight norm, and a skip connection."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(width, width, 3, dilation=dilation)
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.convolution = nn.utils.parametrizations.weight_norm(convolution)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.convolution(self.pad(x)))


@entry(
    "Temporal convolutions with weight norm",
    "recurrent",
    "The weight is derived from two parameters, W = g v / ‖v‖: it is computed once, and gradients go back "
    "through the norm without a batch.",
    small={"steps": 4, "batch": 2, "width": 3, "depth": 2},
    shown=(TemporalBlock,),
)
def tcn(steps: int = 64, batch: int = 16, width: int = 32, depth: int = 5) -> Parts:
    model = nn.Sequential(*(TemporalBlock(width, 2**level) for level in range(depth)), nn.Conv1d(width, 2, 1))
    return model, torch.randn(batch, width, steps), {}
