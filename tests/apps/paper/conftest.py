"""The three experiments, small enough for tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from ntkscope.apps.digits import Digits
from ntkscope.apps.paper import campaign
from ntkscope.apps.paper.experiments import Case, Cell, Experiment

METRICS = ("frobenius_norm", "alignment", "effective_rank")


def _mlp(width: int = 3) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = torch.randn(8, 5)
        return Case("tiny", nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, width)), inputs)


def _gru() -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Case("tiny", nn.GRU(2, 3), torch.randn(4, 5, 2), lambda y: y[0], 1)


def _two(digits: Digits | None) -> tuple[Case, ...]:
    first, second = _mlp(2), _mlp(2)
    with torch.no_grad():
        second.model[0].weight.mul_(1.5)  # type: ignore[index,operator,union-attr]
    return first, second


TRACE_CELLS = (
    Cell("ntk-products", 10),
    Cell("n-vjps", 10, every=2),
    Cell("p-jvps", 10, every=2),
    *(Cell(method, m) for method in ("hutch++", "rhutch", "fhutch") for m in (6, 12)),
    Cell("hutch++", 18, every=2),
    Cell("construction"),
    Cell("exact"),
    Cell("per-sample", 1),
    Cell("per-sample", 4),
    Cell("tolerance", 0.1),
)
QUICK_CELLS = tuple(cell for cell in TRACE_CELLS if cell.every == 1)
KERNEL_CELLS = (
    Cell("ntk-products", 8, METRICS),
    *(Cell("hutch++", m, (metric,)) for metric in METRICS for m in (6, 12)),
    Cell("construction", 0, METRICS),
    Cell("exact", 0, METRICS),
    Cell("sketch", 12, METRICS),
    Cell("nystrom", 12, METRICS),
)
TINY = (
    Experiment("mlp", "MLP", lambda digits: (_mlp(),), TRACE_CELLS, QUICK_CELLS),
    Experiment("gru", "GRU", lambda digits: (_gru(),), TRACE_CELLS, QUICK_CELLS),
    Experiment("mnist", "MNIST MLP", _two, KERNEL_CELLS, KERNEL_CELLS, digits=True),
)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two repetitions; only to be copied."""
    out = tmp_path_factory.mktemp("measured") / "paper"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "load_digits", lambda seed: None)
        campaign.run_paper(out, campaign.Wishes(repeats=2), Console(quiet=True), TINY)
    return out


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> tuple[Experiment, ...]:
    """The experiments, with digits that nobody reads."""
    monkeypatch.setattr(campaign, "load_digits", lambda seed: None)
    return TINY
