"""A progress bar with the running value and its error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ntkscope.results import Estimate

__all__ = ["ProgressListener", "progress_bar"]


class ProgressListener:
    """What running computations call.

    Args:
        show: Takes (completed share or ``None``, text).
        forward: The caller's own callback, if progress was one.
    """

    def __init__(
        self,
        show: Callable[[float | None, str], None] | None = None,
        forward: Callable[[Estimate, int, int | None], None] | None = None,
    ) -> None:
        self._show = show
        self._forward = forward

    @property
    def listener(self) -> ProgressListener | None:
        """Itself, or ``None`` if nobody listens and nothing need be worked out to be told."""
        return None if self._show is None and self._forward is None else self

    def __call__(self, estimate: Estimate, spent: int, budget: int | None) -> None:
        """An estimate so far, and the products that were spent on it."""
        if self._forward is not None:
            self._forward(estimate, spent, budget)
        if self._show is not None:
            self._show(spent / budget if budget else None, f"{estimate.value_text()}, {spent:,} products")

    def fraction(self, done: int, total: int) -> None:
        """How much of an exact computation is done."""
        if self._show is not None:
            self._show(done / max(total, 1), "")


@contextmanager
def progress_bar(progress: bool | Callable[..., None], title: str) -> Iterator[ProgressListener]:
    """A bar on the terminal (or in a notebook) for ``True``; a call of one's own for a callable.

    Args:
        progress: Whether to show a bar, or a function of (estimate, spent, budget).
        title: What is measured.
    """
    if callable(progress):
        yield ProgressListener(forward=progress)
        return
    if not progress:
        yield ProgressListener()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns: list[Any] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[value]}"),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(title.replace("_", " "), total=None, value="")

        def show(share: float | None, text: str) -> None:
            if share is None:
                bar.update(task, value=text)
            else:
                bar.update(task, total=1.0, completed=share, value=text)

        yield ProgressListener(show)
