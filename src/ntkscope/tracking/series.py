"""The same numbers after the fact: from kernels at one checkpoint after another."""

from __future__ import annotations

import itertools
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ntkscope.files import check_writable
from ntkscope.fingerprints import Fingerprint
from ntkscope.ntk import NTK
from ntkscope.results import Cost
from ntkscope.tracking.log import SCHEMA, LogFile, check_new
from ntkscope.tracking.look import Look
from ntkscope.tracking.metrics import DEFAULT
from ntkscope.tracking.observer import Observer
from ntkscope.tracking.run import Run
from ntkscope.tracking.settings import sizes, versions

__all__ = ["natural_order", "steps_of", "watch_series"]


def natural_order(paths: Iterable[str | Path]) -> list[Path]:
    """Paths in the order that people mean: step10 after step9.

    >>> [str(path) for path in natural_order(["step10.pt", "step9.pt"])]
    ['step9.pt', 'step10.pt']
    """

    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.findall(r"\d+|\D+", str(path))
        return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts]

    return sorted(map(Path, paths), key=key)


def steps_of(paths: Sequence[Path]) -> list[int]:
    """The steps in the names of checkpoints, the last number of each; 0, 1, 2 if they do not rise.

    >>> steps_of([Path("run2-step9.pt"), Path("run2-step10.pt")]), steps_of([Path("a.pt"), Path("b.pt")])
    ([9, 10], [0, 1])
    """
    found = [re.findall(r"\d+", path.stem) for path in paths]
    steps = [int(numbers[-1]) for numbers in found if numbers]
    rising = all(one < other for one, other in itertools.pairwise(steps))
    return steps if len(steps) == len(paths) and rising else list(range(len(paths)))


def watch_series(
    moments: Iterable[tuple[nn.Module, NTK]],
    steps: Sequence[int],
    *,
    metrics: Sequence[str] = DEFAULT,
    targets: Any = None,
    by: str | None = None,
    probes: int = 2,
    seed: int = 0,
    name: str = "checkpoints",
    log: Path | None = None,
    config: dict[str, Any] | None = None,
    tell: Callable[[Look], object] = lambda look: None,
) -> Run:
    """Looks at one kernel after another, as a tracker does during training.

    Args:
        moments: The model and its kernel at each checkpoint; one is held at a time.
        steps: Of the checkpoints, rising.
        metrics: As of :class:`ntkscope.Tracker`, and so are ``targets``, ``by``, ``probes`` and ``seed``.
        targets: y.
        by: ``"layer"`` or ``None``.
        probes: Random signs of every sample.
        seed: Of the probes.
        name: Of the run.
        log: File to write as a tracker does; must not hold a run.
        config: What else to say about the run.
        tell: Called with every look.

    Returns:
        The run; after Ctrl-C what was seen by then, which :attr:`Run.problems` says.

    Raises:
        ValueError: As ``NTK.fingerprint``; and if the log cannot be written.
    """
    if log is not None:
        check_writable(log, (".jsonl",))
        check_new(log)
    observer = Observer(metrics, targets, by, probes, seed)
    asked = {"metrics": list(observer.metrics), "by": by, "probes": probes, "seed": seed}
    file = None if log is None else LogFile(log, uuid.uuid4().hex)
    looks: list[Look] = []
    kept: dict[int, Fingerprint] = {}
    settings: dict[str, Any] = {**asked, "targets": targets is not None}
    problems: list[str] = []
    try:
        for step, (model, kernel) in zip(steps, moments, strict=True):
            since = time.perf_counter()
            if not looks:
                settings = {"model": type(model).__name__, **sizes(kernel), **settings}
                head = {"schema": SCHEMA, "name": name, "settings": settings, "config": config or {}}
                if file is not None:
                    file.append("run", {**head, "versions": versions()})
            found, layers, cost, fingerprint = observer.measure(kernel, model)
            observer.keep(fingerprint)
            spent = Cost(cost.products, cost.vjps, cost.jvps, time.perf_counter() - since)
            saved = None if file is None else file.save(fingerprint, step)
            if file is None:
                kept[step] = fingerprint
            looks.append(Look(step, found, layers, {}, 0.0, spent, saved))
            if file is not None:
                file.append("look", looks[-1].to_dict())
            tell(looks[-1])
    except KeyboardInterrupt:
        if not looks:
            raise
        problems.append(f"interrupted after {len(looks)} of {len(steps)} checkpoints")
    key = "checkpoints" if file is None else file.run
    folder = Path() if log is None else log.parent
    return Run(
        name, key, looks, settings, config or {}, versions(), problems=problems, kept=kept, folder=folder
    )
