"""Trains and watches in a process of its own, which a test kills: python killed.py LOG CHECKPOINT STEPS."""

from __future__ import annotations

import sys
from pathlib import Path

from ntkscope import Tracker

sys.path.insert(0, str(Path(__file__).parents[1]))
from tracking.training import Training


def main() -> None:
    log, checkpoint, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    training = Training()
    if checkpoint.exists():
        training.load(checkpoint)
    tracker = Tracker(
        training.model,
        training.inputs,
        2,
        targets=training.targets,
        log=log,
        resume=training.steps,
        by="layer",
    )
    print("ready", flush=True)
    while training.steps < steps:
        loss = training.step()
        if training.steps % 3 == 0:
            training.save(checkpoint)
        tracker.step(loss=loss)


if __name__ == "__main__":
    main()
