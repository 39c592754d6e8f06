"""The three experiments of arXiv 2511.10796 as data: models, inputs, methods and their budgets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ntkscope import NTK
from ntkscope.apps.digits import Digits, accuracy, make_network, train

__all__ = [
    "EXPERIMENTS",
    "KERNEL_METRICS",
    "METHOD_NAMES",
    "PAPER_METHODS",
    "Case",
    "Cell",
    "Experiment",
    "mnist_mlps",
    "paper_gru",
    "paper_mlp",
]

#: What each method is called in figures and tables, in their order.
METHOD_NAMES = {
    "ntk-products": "n NTK products",
    "n-vjps": "n VJPs",
    "p-jvps": "p JVPs",
    "hutch++": "Hutch++",
    "rhutch": "RHutch",
    "fhutch": "FHutch",
    "per-sample": "per-sample (ours)",
    "sketch": "sketch (ours)",
    "nystrom": "nystrom (ours)",
    "exact": "exact by structure (ours)",
    "tolerance": "trace(rtol=…) (ours)",
    "construction": "construction (ours)",
}

#: The methods of the paper that estimate.
PAPER_METHODS = ("hutch++", "rhutch", "fhutch")

_TRACE = ("trace",)

#: What the paper measures of two kernels, in the order of its figure.
KERNEL_METRICS = ("frobenius_norm", "alignment", "effective_rank")


@dataclass(frozen=True)
class Case:
    """A model on inputs, and its kernel.

    Attributes:
        name: In words.
        model: The model.
        inputs: What it is called with.
        outputs: Picks the state.
        batch_dim: The axis of the samples in the inputs.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    outputs: Callable[[Any], Tensor] = lambda y: y
    batch_dim: int = 0

    def kernel(self, **options: Any) -> NTK:
        """A new kernel of it."""
        return NTK(self.model, self.inputs, outputs=self.outputs, batch_dim=self.batch_dim, **options)

    def to(self, device: torch.device, dtype: torch.dtype) -> Case:
        """A copy on another device, of another dtype."""
        import copy

        model = copy.deepcopy(self.model).to(device, dtype)
        return Case(self.name, model, self.inputs.to(device, dtype), self.outputs, self.batch_dim)


@dataclass(frozen=True)
class Cell:
    """One kind of run: a method at one setting.

    Attributes:
        method: A key of :data:`METHOD_NAMES`.
        setting: Probes or products, a relative tolerance, or the columns of the part that is run.
        metrics: What one run gives.
        every: It runs in every so-manieth repetition, counted from the first.
    """

    method: str
    setting: float = 0
    metrics: tuple[str, ...] = _TRACE
    every: int = 1


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Attributes:
        name: In the raw data.
        title: In figures.
        cases: The models; two where kernels are compared, the second is the one measured alone.
        cells: All that is run in one repetition.
        quick: The same for ``--quick``.
        digits: Whether it needs MNIST.
    """

    name: str
    title: str
    cases: Callable[[Digits | None], tuple[Case, ...]]
    cells: tuple[Cell, ...]
    quick: tuple[Cell, ...]
    digits: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it measures."""
        return KERNEL_METRICS if self.digits else _TRACE


# The models.


def paper_mlp() -> Case:
    """15 linear layers of width 64 on 100 inputs, ReLU after each; 50 samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.randn(50, 100)
        widths = [100, *[64] * 15]
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return Case("MLP of the paper", nn.Sequential(*layers), inputs)


def paper_gru() -> Case:
    """GRU(10, 64) on 50 steps of 15 samples; the state is every hidden unit at every step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.randn(50, 15, 10)
        return Case("GRU of the paper", nn.GRU(10, 64), inputs, _first, 1)


def _first(outputs: Any) -> Tensor:
    first: Tensor = outputs[0]
    return first


def mnist_mlps(digits: Digits, epochs: int = 5) -> tuple[Case, Case]:
    """784-256-256-10 before and after training, on 512 digits that it was not trained on.

    Args:
        digits: To train and to measure on.
        epochs: Of training: Adam at 1e-3, batches of 128.
    """
    before, after = make_network(0), make_network(0)
    train(after, digits, epochs, seed=0)
    return (
        Case(f"before training ({accuracy(before, digits):.1%} right)", before, digits.test_images),
        Case(f"after training ({accuracy(after, digits):.1%} right)", after, digits.test_images),
    )


# What is run. Probes are multiples of six, as in the paper's code.


def _cells(
    method: str, settings: tuple[float, ...], every: int = 1, metrics: tuple[str, ...] = _TRACE
) -> tuple[Cell, ...]:
    return tuple(Cell(method, setting, metrics, every) for setting in settings)


def _paper_trace(probes: dict[int, tuple[float, ...]]) -> tuple[Cell, ...]:
    """The paper's three methods, at probes that run in every so-manieth repetition."""
    return tuple(
        cell
        for every, settings in probes.items()
        for method in PAPER_METHODS
        for cell in _cells(method, settings, every)
    )


def _ours_trace(per_sample: tuple[float, ...], tolerances: dict[int, tuple[float, ...]]) -> tuple[Cell, ...]:
    growing = (
        cell for every, settings in tolerances.items() for cell in _cells("tolerance", settings, every)
    )
    return (Cell("construction"), Cell("exact"), *_cells("per-sample", per_sample), *growing)


_SMALL = (6, 12, 24, 42, 60, 96, 144, 216, 324)

_MLP_CELLS = (
    Cell("ntk-products", 3200),
    Cell("n-vjps", 640, every=5),
    Cell("p-jvps", 256, every=5),
    *_paper_trace({1: (*_SMALL, 546, 852, 1320), 2: (2058, 3198)}),
    *_ours_trace((1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 64), {1: (0.03, 0.01, 0.003, 0.001, 1e-4, 1e-5)}),
)
_MLP_QUICK = (
    Cell("ntk-products", 640),
    Cell("n-vjps", 640, every=5),
    Cell("p-jvps", 256, every=5),
    *_paper_trace({1: (6, 18, 60, 144, 216, 324, 852)}),
    *_ours_trace((1, 2, 4, 8, 16, 32, 64), {1: (0.01, 0.003, 0.001, 1e-5)}),
)

_GRU_CELLS = (
    Cell("ntk-products", 256),
    Cell("n-vjps", 256, every=5),
    Cell("p-jvps", 256, every=5),
    *_paper_trace({1: _SMALL, 2: (480, 726, 1098), 5: (1662, 2514, 3462), 10: (5244, 7932, 12000)}),
    *_ours_trace(
        (1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63, 94, 141, 211, 316, 474, 711, 1066),
        {1: (0.03, 0.01, 0.003), 2: (0.001, 1e-4, 1e-5)},
    ),
)
_GRU_QUICK = (
    Cell("ntk-products", 128),
    Cell("n-vjps", 128, every=5),
    Cell("p-jvps", 128, every=5),
    *_paper_trace({1: (6, 18, 60, 180), 3: (540, 1098)}),
    *_ours_trace((1, 2, 4, 8, 16, 32, 64, 128, 256), {1: (0.01, 0.003), 3: (0.001, 1e-5)}),
)


def _mnist(paper: dict[int, tuple[float, ...]], ours: dict[int, tuple[float, ...]]) -> tuple[Cell, ...]:
    """The paper measures each metric in a run of its own; ours gives all of them in one."""
    return (
        Cell("ntk-products", 256, KERNEL_METRICS),
        *(
            cell
            for every, settings in paper.items()
            for metric in KERNEL_METRICS
            for cell in _cells("hutch++", settings, every, (metric,))
        ),
        Cell("construction", 0, KERNEL_METRICS),
        Cell("exact", 0, KERNEL_METRICS),
        *(
            cell
            for every, settings in ours.items()
            for method in ("sketch", "nystrom")
            for cell in _cells(method, settings, every, KERNEL_METRICS)
        ),
    )


_MNIST_CELLS = _mnist(
    {1: (60, 96), 2: (162, 264), 5: (432,), 10: (702, 1146)}, {1: (24, 48, 96, 192), 10: (384,)}
)
_MNIST_QUICK = _mnist({1: (60,), 3: (96, 162)}, {1: (24, 48, 96)})


def _alone(case: Callable[[], Case]) -> Callable[[Digits | None], tuple[Case, ...]]:
    return lambda digits: (case(),)


def _mnist_cases(digits: Digits | None) -> tuple[Case, ...]:
    assert digits is not None
    return mnist_mlps(digits)


#: The experiments of the paper, in its order.
EXPERIMENTS = (
    Experiment("mlp", "MLP", _alone(paper_mlp), _MLP_CELLS, _MLP_QUICK),
    Experiment("gru", "GRU", _alone(paper_gru), _GRU_CELLS, _GRU_QUICK),
    Experiment("mnist", "MNIST MLP", _mnist_cases, _MNIST_CELLS, _MNIST_QUICK, digits=True),
)
