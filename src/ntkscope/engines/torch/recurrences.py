"""Recurrent layers by plain operations: a step of each kind, and layers over sequences of any length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CELLS", "Lengths", "padded_layers"]

#: ``step(ours, theirs, hidden)``: the input's and the hidden state's part of all gates, and (h, ...).
_Step = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _rnn(activation: Callable[[Tensor], Tensor]) -> _Step:
    def step(ours: Tensor, theirs: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (activation(ours + theirs),)

    return step


def _gru(ours: Tensor, theirs: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    mine, own = ours.chunk(3, dim=-1), theirs.chunk(3, dim=-1)
    reset, update = (torch.sigmoid(a + b) for a, b in zip(mine[:2], own[:2], strict=True))
    candidate = torch.tanh(mine[2] + reset * own[2])
    return (candidate + update * (hidden[0] - candidate),)


def _lstm(ours: Tensor, theirs: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    take, forget, candidate, show = (ours + theirs).chunk(4, dim=-1)
    memory = torch.sigmoid(forget) * hidden[1] + torch.sigmoid(take) * torch.tanh(candidate)
    return torch.sigmoid(show) * torch.tanh(memory), memory


_STEPS: dict[str, _Step] = {
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
    "gru": _gru,
    "lstm": _lstm,
}


def _cell(name: str) -> Callable[..., Any]:
    """``torch.<name>_cell`` by plain operations."""
    step = _STEPS[name]

    def cell(x: Tensor, hidden: Any, *weights: Tensor | None) -> Any:
        before = tuple(hidden) if name == "lstm" else (hidden,)
        inward, recurrent, inward_bias, recurrent_bias = [*weights, None, None][:4]
        ours = F.linear(x, inward, inward_bias)  # type: ignore[arg-type]
        theirs = F.linear(before[0], recurrent, recurrent_bias)  # type: ignore[arg-type]
        after = step(ours, theirs, before)
        return after if name == "lstm" else after[0]

    return cell


#: Torch's functions of one step, and the same by plain operations.
CELLS: Mapping[Any, Callable[..., Any]] = {getattr(torch, f"{name}_cell"): _cell(name) for name in _STEPS}


@dataclass(frozen=True)
class Lengths:
    """How long each of N sequences is that were padded to T steps.

    Attributes:
        values: Shape (N,).
        steps: T.
    """

    values: Tensor
    steps: int

    def is_inside(self) -> Tensor:
        """Which steps are none of the padding: shape (T, N)."""
        return torch.arange(self.steps, device=self.values.device).unsqueeze(1) < self.values

    def masked(self, x: Tensor, value: float) -> Tensor:
        """(T, N, ...) with a value in the padding."""
        inside = self.is_inside()
        return torch.where(inside.reshape(*inside.shape, *[1] * (x.dim() - 2)), x, value)

    def last(self, x: Tensor) -> Tensor:
        """The last step of every sequence in (T, N, H): shape (N, H)."""
        place = (self.values - 1).reshape(1, -1, 1).expand(1, *x.shape[1:])
        return x.gather(0, place).squeeze(0)

    def turned(self, x: Tensor) -> Tensor:
        """Every sequence in (T, N, H) from its end, its padding where it is."""
        step = torch.arange(self.steps, device=self.values.device).unsqueeze(1)
        place = torch.where(step < self.values, self.values - 1 - step, step)
        return x.gather(0, place.unsqueeze(2).expand(x.shape))


def padded_layers(
    name: str,
    x: Tensor,
    lengths: Lengths,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    biases: bool,
    layers: int,
    both_ways: bool,
) -> tuple[Tensor, ...]:
    """``torch.<name>`` of sequences that end at their own lengths: (outputs, last h, and c of an LSTM).

    What is computed in the padding depends on nothing else, and nothing but it depends on that.

    Args:
        name: ``gru``, ``lstm``, ``rnn_tanh`` or ``rnn_relu``.
        x: Inputs, shape (T, N, F), padded.
        lengths: Of the sequences.
        hidden: The states at the start, each of shape (layers · directions, N, H).
        weights: As torch orders them.
        biases: Whether there are any.
        layers: Their number.
        both_ways: Whether each layer also runs from the end.
    """
    directions = 2 if both_ways else 1
    projected = name == "lstm" and hidden[0].shape[2] != hidden[1].shape[2]
    each = (4 if biases else 2) + projected
    lasts: list[list[Tensor]] = [[] for _ in hidden]
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = weights[number * each : (number + 1) * each]
            start = tuple(one[number] for one in hidden)
            states = _one_way(name, lengths.turned(x) if direction else x, start, own, biases, projected)
            for last, state in zip(lasts, states, strict=True):
                last.append(lengths.last(state))
            outputs.append(lengths.turned(states[0]) if direction else states[0])
        x = torch.cat(outputs, dim=2) if both_ways else outputs[0]
    return x, *(torch.stack(last) for last in lasts)


def _one_way(
    name: str, x: Tensor, hidden: tuple[Tensor, ...], own: Sequence[Tensor], biases: bool, projected: bool
) -> tuple[Tensor, ...]:
    """The states after every step, each of shape (T, N, H)."""
    step, projection = _STEPS[name], own[-1] if projected else None
    inward, recurrent = own[:2]
    inward_bias, recurrent_bias = own[2:4] if biases else (None, None)
    states = []
    for ours in F.linear(x, inward, inward_bias).unbind(0):
        hidden = step(ours, F.linear(hidden[0], recurrent, recurrent_bias), hidden)
        if projection is not None:
            hidden = (F.linear(hidden[0], projection), *hidden[1:])
        states.append(hidden)
    return tuple(torch.stack(one) for one in zip(*states, strict=True))
