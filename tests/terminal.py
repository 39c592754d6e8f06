"""A user's models and checkpoints, and the command line as a user calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from typer.testing import CliRunner, Result

import ntkscope
from ntkscope.apps.cli import app

MODELS = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def with_inputs():
    return mlp(), torch.linspace(-1, 1, 24).reshape(4, 6)

def gru():
    return nn.GRU(3, 4), torch.linspace(-1, 1, 30).reshape(5, 2, 3)

def dropout():
    return nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.Linear(4, 2)), torch.ones(3, 6)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.table = nn.Linear(4, 3), nn.Embedding(7, 3)

    def forward(self, values, index):
        return {"sum": self.first(values) + self.table(index), "first": self.first(values)}

def huge():
    return nn.Linear(2, 2), torch.full((3, 2), 1e30)

def fails():
    raise RuntimeError("no weights today")

def returns_list():
    return [mlp()]

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        import time
        print("started", flush=True)
        time.sleep(30)
        return self.layer(x)

def slow():
    return Slow(), torch.ones(1, 2)

number = 3
"""


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def reference(seed: int, folder: Path) -> ntkscope.NTK:
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model.load_state_dict(weights(seed))
    with np.load(folder / "x.npz") as archive:
        return ntkscope.NTK(model, torch.from_numpy(archive["x"]).float())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False, prog_name="ntkscope")


def succeed(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def fail(*arguments: str) -> str:
    """The one line of an error."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("ntkscope: ")
    assert "Traceback" not in result.stderr
    return result.stderr.removeprefix("ntkscope: ").strip()
