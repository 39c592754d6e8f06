"""What a long run has computed, kept in a file as it goes: a run that is killed goes on where it was.

The file is a sequence of records, each with its length and a hash. What was being written when a run
was killed is cut off. A run asks for its records in the order in which it made them, and computes on
from where there are no more. Numbers are kept as they were computed, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ntkscope.errors import argument

__all__ = ["Journal", "Task", "active", "begin", "keeping", "recorded", "recorded_form"]

_MAGIC = b"ntkscope journal 1\n"
_LENGTH, _HASH = 8, 16
#: Seconds between two records of work in progress.
_EVERY = 15.0
#: By how much numbers of the same state may differ, on another number of threads.
_ROUNDING = 1e-5

_current: ContextVar[Journal | None] = ContextVar("journal", default=None)

Arrays = Mapping[str, NDArray[Any]]


class _Ledger(Protocol):
    products: int
    vjps: float
    jvps: float

    def add(self, *, products: int = 0, vjps: float = 0.0, jvps: float = 0.0) -> None: ...


class Journal:
    """A file of records.

    Args:
        path: The file; made if there is none.
        identity: What the run is, by name. Arrays may differ by rounding.

    Raises:
        ValueError: If the file is something else, of another run, or in use.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._places: dict[int, int] = {}
        self._file = self._open()
        self._next = 0
        self._saved = time.monotonic()
        try:
            _lock(self._file, self.path)
            self._read()
            self._check(identity)
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> BinaryIO:
        if self.path.exists() and not self.path.is_file():
            raise ValueError(
                f"{self.path} is not a file; give resume= the name of a file for the run's numbers"
            )
        try:
            return open(self.path, "r+b" if self.path.exists() else "x+b")
        except OSError as error:
            raise ValueError(f"cannot write {self.path}: {error.strerror}") from error

    def _read(self) -> None:
        """Notes where the last record of each task is, and cuts off what was not finished."""
        begin = self._file.read(len(_MAGIC))
        if begin and not _MAGIC.startswith(begin[: len(_MAGIC)]):
            raise ValueError(
                f"{self.path} holds something else than a run's numbers; give {_resume()} another file"
            )
        end = len(_MAGIC)
        if len(begin) < end:
            self._file.seek(0)
            self._file.write(_MAGIC)
        while (record := self._at(end)) is not None:
            arrays, after = record
            self._places[int(arrays["_task"])] = end
            end = after
        self._file.truncate(end)
        self._file.seek(end)

    def _at(self, place: int) -> tuple[dict[str, NDArray[Any]], int] | None:
        """A record and where it ends; ``None`` if it is not whole."""
        self._file.seek(place)
        head = self._file.read(_LENGTH + _HASH)
        length = int.from_bytes(head[:_LENGTH], "little")
        payload = self._file.read(length) if len(head) == _LENGTH + _HASH else b""
        if len(payload) < max(length, 1) or _hash(payload) != head[_LENGTH:]:
            return None
        from safetensors.numpy import load

        return load(payload), place + len(head) + length

    def _check(self, identity: Mapping[str, Any]) -> None:
        plain = {key: value for key, value in identity.items() if not isinstance(value, np.ndarray)}
        arrays = {key: np.asarray(value) for key, value in identity.items() if key not in plain}
        task = self.task("what the run is")
        if task.known is None:
            text = json.dumps(plain, sort_keys=True)
            task.save({**arrays, "_plain": np.frombuffer(text.encode(), np.uint8)})
            return
        before = json.loads(bytes(task.known["_plain"]))
        for key, value in json.loads(json.dumps(plain)).items():
            if before.get(key) != value:
                raise ValueError(
                    f"{self.path} is of another run: its {key} is {before.get(key)!r}, and this one's "
                    f"{value!r}; give {_resume()} another file"
                )
        for key, value in arrays.items():
            other = task.known.get(key)
            if other is None or other.shape != value.shape or not _is_near(other, value):
                raise ValueError(
                    f"{self.path} is of another run: its {key} differs; give {_resume()} another file"
                )

    def task(self, name: str) -> Task:
        """The next piece of work, with what is known of it."""
        number, self._next = self._next, self._next + 1
        place = self._places.get(number)
        found = None if place is None else self._at(place)
        self._file.seek(0, os.SEEK_END)
        known = None if found is None else found[0]
        if known is not None and bytes(known["_name"]).decode() != name:
            raise ValueError(
                f"{self.path} has other work where this run does {name!r}, and cannot be gone on with; start "
                "again with another file"
            )
        return Task(self, number, name, known)

    def write(self, arrays: Arrays) -> None:
        """A record more."""
        from safetensors.numpy import save

        payload = save({key: np.asarray(value, order="C") for key, value in arrays.items()})
        self._file.write(len(payload).to_bytes(_LENGTH, "little") + _hash(payload) + payload)
        self._file.flush()
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for a record of work in progress."""
        return time.monotonic() - self._saved > _EVERY

    def close(self) -> None:
        """Ends writing."""
        self._file.close()


class Task:
    """A piece of work.

    Attributes:
        known: Its last record; ``None`` if there is none.
    """

    def __init__(
        self, journal: Journal, number: int, name: str, known: dict[str, NDArray[Any]] | None
    ) -> None:
        self._journal, self._number, self._name = journal, number, name
        self.known = known

    @property
    def is_done(self) -> bool:
        """Whether that is all of it."""
        return self.known is not None and bool(self.known["_done"])

    def save(self, arrays: Arrays, *, done: bool = True) -> None:
        """Keeps what is known by now."""
        own = {
            "_task": np.array(self._number),
            "_done": np.array(done),
            "_name": np.frombuffer(self._name.encode(), np.uint8),
        }
        self._journal.write({**arrays, **own})

    def is_due(self) -> bool:
        """Whether it is time to keep what is known by now."""
        return self._journal.is_due()


def _resume() -> str:
    return argument("resume")


def _hash(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_HASH).digest()


def _is_near(one: NDArray[Any], other: NDArray[Any]) -> bool:
    largest = max(float(np.abs(one).max(initial=0)), float(np.abs(other).max(initial=0)))
    return bool(np.all(np.abs(one - other) <= _ROUNDING * largest))


def _lock(file: BinaryIO, path: Path) -> None:
    """One process at a time; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"{path} is in use by another process; wait for it, or give another file") from error


@contextmanager
def keeping(path: str | os.PathLike[str], identity: Mapping[str, Any]) -> Iterator[None]:
    """Work inside is kept in a file, and what the file has is not done again.

    Args:
        path: The file.
        identity: What the run is.
    """
    journal = Journal(path, identity)
    token = _current.set(journal)
    try:
        yield
    finally:
        _current.reset(token)
        journal.close()


def active() -> bool:
    """Whether work is kept."""
    return _current.get() is not None


def begin(name: str) -> Task | None:
    """A piece of work that keeps what it knows as it goes; ``None`` where nothing is kept."""
    journal = _current.get()
    return None if journal is None else journal.task(name)


def recorded(name: str, work: Callable[[], NDArray[Any]], ledger: _Ledger | None = None) -> NDArray[Any]:
    """A piece of work as a whole.

    Args:
        name: What it is, the same in every run.
        work: Does it.
        ledger: Where its products are entered, again if it is not done again.
    """
    task = begin(name)
    if task is None:
        return work()
    if task.known is not None:
        if ledger is not None:
            products, vjps, jvps = task.known["_cost"].tolist()
            ledger.add(products=int(products), vjps=vjps, jvps=jvps)
        return task.known["value"]
    before = _spent(ledger)
    # What is done within it is a part of it, and has no records of its own.
    token = _current.set(None)
    try:
        # In the order in which it is read again: sums of it come out the same.
        value = np.array(work(), order="C")
    finally:
        _current.reset(token)
    task.save({"value": value, "_cost": _spent(ledger) - before})
    return value


def recorded_form(name: str, work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The same of plain values by name, as JSON has them."""
    if not active():
        return work()
    text = recorded(name, lambda: np.frombuffer(json.dumps(dict(work())).encode(), np.uint8))
    found: Mapping[str, Any] = json.loads(bytes(text))
    return found


def _spent(ledger: _Ledger | None) -> NDArray[np.float64]:
    return np.zeros(3) if ledger is None else np.array([ledger.products, ledger.vjps, ledger.jvps], float)
