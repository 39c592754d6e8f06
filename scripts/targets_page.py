"""Draws the picture of docs/targets.md: kernel regression on digits by the kernels along training.

Run as ``python scripts/targets_page.py``; takes some minutes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

import ntkscope
from ntkscope.apps.digits import accuracy, load_digits, make_network, train
from ntkscope.plots import COLORS, save_figure

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "regression.png"
EPOCHS = (0, 1, 2, 5)


def main() -> None:
    digits, network = load_digits(), make_network()
    images, labels = digits.train_images[:512], digits.train_labels[:512]
    targets = torch.nn.functional.one_hot(labels, 10).float() - 0.1
    rows, done = [], 0
    for epochs in EPOCHS:
        train(network, digits, epochs - done)
        done = epochs
        ntk = ntkscope.NTK(network, images)
        shift = 0.01 * ntk.trace("exact").value / ntk.n
        fit = ntk.regression(targets, shift, "exact", from_state=False)
        found = fit.predict(digits.test_images).argmax(1)
        share = float((found == digits.test_labels).double().mean())
        rows.append((accuracy(network, digits), share, ntk.target_alignment(targets).value))
        print(epochs, rows[-1], fit.residual, fit.cost)
    draw(rows)


def draw(rows: list[tuple[float, float, float]]) -> None:
    """The accuracies over the epochs."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    for column, name in enumerate(("the network itself", "regression with its kernel on 512 digits")):
        axis.plot(EPOCHS, [row[column] for row in rows], "o-", color=COLORS[column], label=name)
    axis.set_xlabel("epochs of training")
    axis.set_ylabel("accuracy on 512 test digits")
    axis.set_ylim(0, 1.02)
    axis.grid(color="#e6e6e6")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    save_figure(figure, PICTURE)


if __name__ == "__main__":
    main()
