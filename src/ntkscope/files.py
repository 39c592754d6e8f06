"""Files that are either written whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["check_distinct", "check_writable", "make_folder", "write_text", "write_whole"]


def check_writable(path: Path, suffixes: tuple[str, ...] = ()) -> None:
    """Makes sure, before any computing, that a file can be written.

    Args:
        path: Where it is to be written; symbolic links are followed.
        suffixes: What its name may end in; anything if empty.

    Raises:
        ValueError: If it cannot, with the reason.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")
    if _is_special(path):
        return
    # As it was named, unless a link leads elsewhere.
    folder = (_target(path) if path.is_symlink() else path).parent
    if not folder.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def check_distinct(written: Mapping[str, Path | None], read: Mapping[str, Path | None]) -> None:
    """Makes sure that no file is written twice, or over one that is read.

    Args:
        written: Files by the names of their options; ``None`` where an option was not given.
        read: The same of the files that are read.

    Raises:
        ValueError: If two of them are one file, by whatever names.
    """
    seen = {name: path for name, path in read.items() if path is not None}
    for name, path in written.items():
        if path is None:
            continue
        for other, known in seen.items():
            if _is_same(path, known):
                raise ValueError(f"{other} and {name} are the same file {path}; name another one by {name}")
        seen[name] = path


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
        ValueError: If it cannot be made, with the reason.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cannot write to {folder}: it is not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8, by :func:`write_whole`."""
    write_whole(path, lambda target: target.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes to a temporary file in the same folder, then renames it.

    Symbolic links are followed, and the file keeps its permissions if it was there. What is no
    regular file, such as a pipe or ``/dev/null``, stays what it is and is written into.

    Args:
        path: Where the file is to be.
        write: Writes it to the path that it is given, which ends as ``path`` does.

    Raises:
        ValueError: If there is something that must not be written over, such as a read-only file.
    """
    if _is_special(path):
        _write_into(path, write)
    else:
        _replace(_target(path), write)


def _is_special(path: Path) -> bool:
    """Whether to write into what is there, in place of replacing it; an error if neither may be."""
    try:
        mode = path.stat().st_mode
    except OSError:  # not there, or not to be reached: found out where it is written
        return False
    for refused, words in ((stat.S_ISDIR, "folder"), (stat.S_ISBLK, "disk"), (stat.S_ISSOCK, "socket")):
        if refused(mode):
            raise ValueError(f"cannot write {path}: it is a {words}")
    # The bits too: the superuser may write whatever they say.
    if not mode & 0o222 or not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: it is read-only; make it writable or name another file")
    return not stat.S_ISREG(mode)


def _target(path: Path) -> Path:
    """Where symbolic links lead, whether or not something is there."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise ValueError(f"cannot write {path}: its symbolic links lead in a circle")
    return target


def _is_same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:  # one of them is not there
        return os.path.realpath(first) == os.path.realpath(second)


def _write_into(path: Path, write: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"whole{path.suffix}"
        write(whole)
        with whole.open("rb") as source, path.open("wb") as out:
            shutil.copyfileobj(source, out)


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".ntkscope-", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(_mode(target))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _mode(target: Path) -> int:
    """The permissions of the file, or those of a new one."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
