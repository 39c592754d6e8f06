"""Files that are either written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["check_writable", "write_whole"]


def check_writable(path: Path, suffixes: tuple[str, ...] = ()) -> None:
    """Makes sure, before any computing, that a file can be written.

    Args:
        path: Where it is to be written.
        suffixes: What its name may end in; anything if empty.

    Raises:
        ValueError: If it cannot, with the reason.
    """
    folder = path.parent
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    if not folder.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes to a temporary file in the same folder, then renames it.

    Args:
        path: Where the file is to be.
        write: Writes it to the path that it is given, which ends as ``path`` does.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
