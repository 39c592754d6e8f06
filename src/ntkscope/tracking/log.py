"""The log of a run: JSON Lines that survive a killed process, with fingerprints beside them.

A line is written whole, flushed and synced before training goes on, and its fingerprint before it, so
that a line that is there is true. What a killed process left of a line has no end of line, and is taken
off when the run is resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntkscope.files import check_writable, make_folder
from ntkscope.fingerprints import Fingerprint

__all__ = ["SCHEMA", "LogFile", "check_new", "cut_tail"]

#: Of the lines. It grows when a field is renamed, removed or changes its meaning.
SCHEMA = 1


class LogFile:
    """Appends to the log of one run.

    Args:
        path: The file, ``.jsonl``; fingerprints go to the folder beside it, ``run.fingerprints``.
        run: Tells the run from others.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self.run = run

    @property
    def folder(self) -> Path:
        """That of the fingerprints."""
        return self.path.with_suffix(".fingerprints")

    def append(self, kind: str, record: Mapping[str, Any]) -> None:
        """Writes one line, which is on the disk when this returns."""
        text = json.dumps({"kind": kind, "run": self.run, **record}, ensure_ascii=False, allow_nan=False)
        with self.path.open("ab") as file:
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def save(self, fingerprint: Fingerprint, step: int) -> str:
        """Writes a fingerprint, whole or not at all; its name from the log's folder on."""
        make_folder(self.folder)
        name = f"step-{step:010d}.safetensors"
        fingerprint.save(self.folder / name)
        return f"{self.folder.name}/{name}"


def check_new(path: Path) -> None:
    """Makes sure that a new run may be written there.

    Raises:
        ValueError: If it cannot be written, or holds something.
    """
    check_writable(path, (".jsonl",))
    if path.exists() and path.stat().st_size:
        raise ValueError(
            f"{path} holds a run already; go on with it by resume=, the number of steps that training has "
            "taken, or name another file"
        )


def cut_tail(path: Path) -> bool:
    """Takes off what a killed process left of its last line; whether any whole line is left."""
    if not path.exists():
        return False
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    return whole > 0
