"""Whether a log is that of a new run or of one that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntkscope.tracking.log import check_new, cut_tail
from ntkscope.tracking.reader import read_runs
from ntkscope.tracking.run import Run

__all__ = ["open_log"]

#: What has to be the same for one curve.
_FIXED = ("metrics", "by", "probes", "seed", "targets")


def open_log(path: Path, resume: int | None, settings: Mapping[str, Any]) -> Run | None:
    """The run in a log that goes on; what a killed process left of a line is taken off.

    Args:
        path: Of the log.
        resume: Steps that training has taken; ``None`` for a new run.
        settings: How the run is watched now.

    Returns:
        The run, or ``None`` if a new one begins.

    Raises:
        ValueError: If there is a run and should be none, or none and should be one, or it was watched in
            another way.
    """
    if resume is None:
        check_new(path)
        return None
    if not cut_tail(path):
        if resume:
            raise ValueError(
                f"{path} holds no run to go on with, so the kernel at the start is not known; leave resume= "
                "out to start from here"
            )
        check_new(path)
        return None
    runs = read_runs(path)
    if len(runs) != 1:
        raise ValueError(f"{path} holds {len(runs)} runs; a run is resumed from a log of its own")
    for name in _FIXED:
        old, new = runs[0].settings.get(name), settings[name]
        if old != new:
            raise ValueError(
                f"{path} was made with {name}={old!r}, found {new!r}; pass the same, or name another log"
            )
    return runs[0]
