"""Where the numbers go besides the log: loggers of experiments, or any function of a dict."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Sink", "send", "split_logs"]

#: Takes the numbers of one look by name, ``"step"`` among them.
Sink = Callable[[dict[str, float]], object]


def split_logs(log: Any) -> tuple[Path | None, list[Sink]]:
    """The file and the functions in what a user passed as ``log``.

    Args:
        log: A path, a function of a dict, an object with ``log`` (wandb, trackio) or ``add_scalar``
            (TensorBoard's writer), a list of these, or ``None``.

    Raises:
        TypeError: For anything else.
        ValueError: For two files.
    """
    given = [] if log is None else list(log) if isinstance(log, (list, tuple)) else [log]
    paths = [Path(one) for one in given if isinstance(one, (str, os.PathLike))]
    if len(paths) > 1:
        raise ValueError(f"log names two files, {paths[0]} and {paths[1]}; a run has one")
    sinks = [_sink(one) for one in given if not isinstance(one, (str, os.PathLike))]
    return (paths[0] if paths else None), sinks


def _sink(given: Any) -> Sink:
    if callable(getattr(given, "add_scalar", None)):

        def write(numbers: Mapping[str, float]) -> None:
            for name, value in numbers.items():
                if name != "step":
                    given.add_scalar(name, value, int(numbers["step"]))

        return write
    for found in (getattr(given, "log", None), given):
        if callable(found):
            return found
    raise TypeError(
        f"log must be a path, a function of a dict, or a logger with log or add_scalar, found a "
        f"{type(given).__name__}; pass a path such as 'run.jsonl'"
    )


def send(sinks: Sequence[Sink], numbers: dict[str, float]) -> None:
    """Gives every sink a copy of its own."""
    for sink in sinks:
        sink(dict(numbers))
