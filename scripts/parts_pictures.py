"""Makes the pictures of the pages on partial traces, splits and penalties, and prints their numbers.

python scripts/parts_pictures.py [partial|splits|penalties ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from ntkscope import NTK, penalties
from ntkscope.apps.digits import Digits, accuracy, load_digits, make_network, train
from ntkscope.plots import COLORS, heatmap, save_figure

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
STRENGTH = 2e-6
EPOCHS = 5


def partial() -> None:
    """The three contracted kernels of a recurrent network."""
    torch.manual_seed(0)
    inputs, gru = torch.randn(50, 15, 10), nn.GRU(10, 64)
    start = time.perf_counter()
    ntk = NTK(gru, inputs, outputs=lambda y: y[0], batch_dim=1)
    names = ("time", "batch", "unit")
    found = [ntk.partial_trace(keep, names, rtol=0.02) for keep in ("batch", "time", "unit")]
    print(f"{time.perf_counter() - start:.1f} s in all")
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axis, (matrix, words) in zip(
        figure.subplots(1, 3), zip(found, ("15 sequences", "50 steps", "64 units"), strict=True), strict=True
    ):
        print(matrix)
        rank = matrix.effective_rank.value
        picture = heatmap(axis, matrix, cosines=True, title=f"{words}\neffective rank {rank:.3g}")
        figure.colorbar(picture, ax=axis, shrink=0.7, pad=0.02)
    save_figure(figure, IMAGES / "partial.png")


def splits() -> None:
    """Layers and classes of the digits' network, before and after training."""
    digits = load_digits()
    network = make_network()
    before = NTK(network, digits.test_images)
    train(network, digits, EPOCHS)
    after = before.at(network)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    layers = [kernel.split() for kernel in (before, after)]
    for split in layers:
        print(split)
    _bars(left, layers, ["784→256", "256→256", "256→10"], "trace by layer")
    _bars(middle, [kernel.split(by="output") for kernel in (before, after)], list("0123456789"), "by class")
    aligned = before.part_alignments(other=after)
    print(aligned, aligned.values.round(3).tolist())
    picture = heatmap(right, aligned, labels=["1", "2", "3"], title="alignment of layers")
    names = ["784→256", "256→256", "256→10"]
    right.set_xticks(range(3), names, rotation=0, fontsize=8)
    right.set_yticks(range(3), names, rotation=90, va="center", fontsize=8)
    right.set_xlabel("after training")
    right.set_ylabel("before")
    for (row, column), value in np.ndenumerate(aligned.values):
        right.text(
            column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.5 else "black"
        )
    figure.colorbar(picture, ax=right, shrink=0.7, pad=0.02)
    save_figure(figure, IMAGES / "splits.png")


def _bars(axis: Any, splits: Any, names: list[str], title: str) -> None:
    width = 0.38
    for place, (split, words) in enumerate(zip(splits, ("before training", "after"), strict=True)):
        values = [part.value for part in split.values()]
        axis.bar(
            np.arange(len(values)) + (place - 0.5) * width, values, width, color=COLORS[place], label=words
        )
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_title(title, fontsize=11)
    # Training makes it some hundred times larger.
    axis.set_yscale("log")
    axis.set_ylim(300, 3e7)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    axis.spines[["top", "right"]].set_visible(False)


def penalised(digits: Digits, strength: float) -> tuple[list[float], float, float]:
    """Traces over training, held-out accuracy in percent, and seconds of the steps."""
    network = make_network()
    first = NTK(network, digits.test_images)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(0)
    traces, spent, step = [first.trace().value], 0.0, 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(digits.train_images), generator=order).split(128):
            start = time.perf_counter()
            optimizer.zero_grad()
            logits = network(digits.train_images[rows])
            loss = nn.functional.cross_entropy(logits, digits.train_labels[rows])
            if strength:
                loss = loss + strength * penalties.trace(
                    network, digits.train_images[rows], seed=step, state=logits
                )
            loss.backward()
            optimizer.step()
            spent += time.perf_counter() - start
            step += 1
        traces.append(first.at(network).trace(method="exact").value)
    return traces, 100 * accuracy(network, digits), spent


def penalties_page() -> None:
    """The exact trace over training, with the penalty and without."""
    digits = load_digits()
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    for place, strength in enumerate((0.0, STRENGTH)):
        traces, right, seconds = penalised(digits, strength)
        print(strength, [round(trace) for trace in traces], f"{right:.2f}%", f"{seconds:.1f} s")
        words = "with penalties.trace" if strength else "plain"
        axis.plot(traces, "o-", color=COLORS[place], label=f"{words}: {right:.1f}% right")
    axis.set_xlabel("epoch")
    axis.set_ylabel("trace of the kernel of 512 digits")
    axis.set_ylim(0)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, IMAGES / "penalties.png")


PAGES = {"partial": partial, "splits": splits, "penalties": penalties_page}

if __name__ == "__main__":
    for name in sys.argv[1:] or PAGES:
        PAGES[name]()
