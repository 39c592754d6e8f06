"""A small training run that is the same every time, and can be stopped and taken up anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BATCH, STEPS = 6, 12


def problem() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A model with dropout and batch norm, whose modes and buffers matter, inputs and classes."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    return model, torch.randn(BATCH, 5, generator=generator), torch.arange(BATCH) % 3


class Training:
    """SGD with momentum on the problem; a step follows from its number and what it starts from."""

    def __init__(self) -> None:
        self.model, self.inputs, self.targets = problem()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)
        self.steps = 0
        self.losses: list[float] = []

    def step(self) -> float:
        torch.manual_seed(self.steps)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.targets)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


def run(steps: int = STEPS, watch: Callable[[Training], Any] | None = None) -> Training:
    """Trains, and calls ``tracker.step`` of what ``watch`` returns."""
    training = Training()
    tracker = None if watch is None else watch(training)
    for _ in range(steps):
        loss = training.step()
        if tracker is not None:
            tracker.step(loss=loss)
    return training


def problem_model() -> nn.Module:
    """The model alone, for the command line."""
    return problem()[0]
