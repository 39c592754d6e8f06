"""Raw measurements: one CSV that only grows, and what they were measured with."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkscope.files import check_writable, make_folder, write_text

__all__ = ["Results", "Row", "Store"]

_MEASUREMENTS = "measurements.csv"
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Row:
    """One number that was measured once.

    Attributes:
        experiment: Name of the experiment.
        method: Name of the method.
        metric: What was measured.
        setting: Probes, products, tolerance, or columns of the part that was run.
        repeat: Number of the repetition.
        seed: Of the probes.
        value: What came out; NaN if only the time was measured.
        error: Its relative distance from the exact value.
        seconds: Wall-clock time of what was run.
        scale: By how much the whole is larger than the part that was run.
        vjps: Reverse products that ran.
        jvps: Forward products that ran.
    """

    experiment: str
    method: str
    metric: str
    setting: float
    repeat: int
    seed: int
    value: float
    error: float
    seconds: float
    scale: float
    vjps: int
    jvps: int

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """What no two rows share."""
        return (self.experiment, self.method, self.metric, self.setting, self.repeat)


_COLUMNS = tuple(field.name for field in fields(Row))
_HEADER = ",".join(_COLUMNS) + "\n"


@dataclass(frozen=True)
class Curve:
    """A method's runs for one metric: arrays of shape (settings, repetitions), NaN where not run.

    Attributes:
        settings: Shape (settings,).
        values: What came out.
        errors: Relative errors.
        seconds: Scaled to the whole.
        vjps: Reverse products, medians over the repetitions: shape (settings,).
        jvps: Forward products, likewise.
        scaled: Whether only a part was run.
    """

    settings: NDArray[np.float64]
    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    seconds: NDArray[np.float64]
    vjps: NDArray[np.float64]
    jvps: NDArray[np.float64]
    scaled: bool


class Results:
    """What figures and tables are drawn from.

    Args:
        settings: What was measured with what.
        rows: The measurements.
    """

    def __init__(self, settings: dict[str, Any], rows: Iterable[Row]) -> None:
        self.settings = settings
        self.rows = {row.key: row for row in rows}
        self._by_curve: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
        for row in self.rows.values():
            self._by_curve[row.experiment, row.method, row.metric].append(row)

    @property
    def quick(self) -> bool:
        """Whether these are the few measurements of ``--quick``."""
        return bool(self.settings["quick"])

    def experiments(self) -> list[str]:
        """Names of the experiments that were begun."""
        return list(dict.fromkeys(row.experiment for row in self.rows.values()))

    def repeats(self, experiment: str) -> int:
        """How many repetitions there are, complete or begun."""
        return 1 + max((row.repeat for row in self.rows.values() if row.experiment == experiment), default=-1)

    def methods(self, experiment: str, metric: str) -> list[str]:
        """Methods that have measured a metric."""
        return [m for e, m, q in self._by_curve if e == experiment and q == metric]

    def fact(self, experiment: str, name: str) -> float:
        """The exact value of a metric, or n, or p.

        Raises:
            ValueError: If it was not measured.
        """
        row = self.rows.get((experiment, "facts", name, 0.0, 0))
        if row is None:
            raise ValueError(f"no exact {name} of the experiment {experiment!r} was measured")
        return row.value

    def curve(self, experiment: str, method: str, metric: str) -> Curve | None:
        """All runs of a method for one metric."""
        rows = self._by_curve.get((experiment, method, metric))
        if not rows:
            return None
        settings = sorted({row.setting for row in rows})
        place = {setting: index for index, setting in enumerate(settings)}
        shape = (len(settings), self.repeats(experiment))
        arrays = {name: np.full(shape, np.nan) for name in ("value", "error", "seconds", "vjps", "jvps")}
        for row in rows:
            at = place[row.setting], row.repeat
            arrays["value"][at], arrays["error"][at] = row.value, row.error
            arrays["seconds"][at] = row.seconds * row.scale
            arrays["vjps"][at], arrays["jvps"][at] = row.vjps * row.scale, row.jvps * row.scale
        return Curve(
            np.array(settings),
            arrays["value"],
            arrays["error"],
            arrays["seconds"],
            np.nanmedian(arrays["vjps"], axis=1),
            np.nanmedian(arrays["jvps"], axis=1),
            any(row.scale != 1 for row in rows),
        )


class Store:
    """The folder of raw measurements.

    Every run is appended and brought to the disk before the next one starts, so that a run that is
    stopped loses nothing. A line that was cut off by a crash is dropped on reading.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / _MEASUREMENTS

    def open(self, settings: dict[str, Any]) -> Results:
        """Makes the folder, or goes on with what was measured in it with the same settings.

        Args:
            settings: What is to be measured with what; under ``"fixed"`` what must not differ.

        Raises:
            ValueError: If the folder holds measurements with other settings, or cannot be written.
        """
        make_folder(self.folder)
        check_writable(self._path)
        settings_path = self.folder / _SETTINGS
        if not settings_path.exists():
            if self._path.exists():
                raise ValueError(
                    f"{self._path} has no {_SETTINGS} beside it, so nobody knows how it was measured; "
                    "name another folder by --out"
                )
            text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
            write_text(settings_path, text)
        results = self.read()
        self._refuse_others(results.settings, settings)
        if not self._path.exists():
            self._append(_HEADER)
        else:
            self._drop_cut_line()
        return results

    def read(self) -> Results:
        """All that was measured so far.

        Raises:
            ValueError: If there is nothing, or a file is damaged.
        """
        path = self.folder / _SETTINGS
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        except FileNotFoundError:
            raise ValueError(
                f"{self.folder} holds no measurements; run ntkscope paper without --redraw first"
            ) from None
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the measurements in {self.folder}: {error}") from error
        whole = text[: text.rfind("\n") + 1]
        if whole and not whole.startswith(_HEADER):
            raise ValueError(
                f"{self._path} begins with other columns than this version writes; name another folder"
            )
        return Results(
            settings, [_parse(record, self._path) for record in csv.DictReader(io.StringIO(whole))]
        )

    def add(self, rows: Iterable[Row]) -> None:
        """Appends what one run gave, all of it or nothing."""
        self._append("".join(_format(row) for row in rows))

    def _append(self, text: str) -> None:
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _drop_cut_line(self) -> None:
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with open(self._path, "r+b") as file:
                file.truncate(whole)
        if whole == 0:
            self._append(_HEADER)

    def _refuse_others(self, there: dict[str, Any], wanted: dict[str, Any]) -> None:
        old, new = there.get("fixed", {}), wanted["fixed"]
        differing = [
            f"{name} {old.get(name)!r}, now {new.get(name)!r}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds measurements with other settings ({'; '.join(differing)}); "
                "name another folder by --out, delete this one, or draw what it holds by --redraw"
            )


def _format(row: Row) -> str:
    cells = [_text(value) for value in asdict(row).values()]
    return ",".join(cells) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.12g}"
    return str(value)


def _parse(record: dict[str, str], path: Path) -> Row:
    def number(name: str) -> float:
        return float(record[name] or "nan")

    try:
        return Row(
            experiment=record["experiment"],
            method=record["method"],
            metric=record["metric"],
            setting=float(record["setting"]),
            repeat=int(record["repeat"]),
            seed=int(record["seed"]),
            value=number("value"),
            error=number("error"),
            seconds=number("seconds"),
            scale=number("scale"),
            vjps=int(record["vjps"]),
            jvps=int(record["jvps"]),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} holds a line that is no measurement ({error}): {record}") from error
