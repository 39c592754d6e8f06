"""Tracker: the kernel watched while a model trains."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ntkscope.fingerprints import Fingerprint
from ntkscope.ntk import NTK
from ntkscope.results import Cost, Estimate
from ntkscope.tracking.log import SCHEMA, LogFile
from ntkscope.tracking.look import Look
from ntkscope.tracking.metrics import DEFAULT
from ntkscope.tracking.modes import evaluating
from ntkscope.tracking.observer import Observer
from ntkscope.tracking.resume import open_log
from ntkscope.tracking.run import Run
from ntkscope.tracking.schedule import Stopwatch, make_schedule, synchronize
from ntkscope.tracking.settings import plain_config, plain_number, sizes, versions, whole_step
from ntkscope.tracking.sinks import send, split_logs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Tracker"]


class Tracker:
    """Watches the kernel of a model while it trains; ``step()`` after every optimiser step.

    Every look takes a fingerprint of the kernel (a few backward passes with the same random probes
    each time) on a fixed batch, in evaluation mode. Training is not touched: parameters, gradients,
    buffers, modes and random states are as they were, and its results the same to the last bit.

    The first look is taken when the tracker is made. A look that fails, as when training has
    diverged, is a warning and a line of the log, and training goes on.

    Args:
        model: The module that is trained.
        inputs: A fixed batch, best of some hundred held-out samples.
        every: Steps between looks, or ``"auto"``: as often as ``overhead`` allows.
        metrics: Which of ``trace``, ``frobenius_norm``, ``effective_rank``, ``alignment_start``,
            ``alignment_last``, ``velocity`` (1 - cos(K_t, K_t') of one look and the next) and
            ``target_alignment`` (yᵀKy / (‖K‖‖y‖²), one more VJP); all if not given.
        targets: y of the inputs: numbers of the state's shape, or classes.
        log: Where the numbers go: a path of JSON Lines, a function of a dict, a logger with ``log``
            (wandb, trackio) or ``add_scalar`` (TensorBoard), or a list of these.
        overhead: With ``every="auto"``, the share of the training's seconds that looks may take. The
            set-up, before the first step, is not part of it.
        by: ``"layer"`` measures the parts of the kernel that each layer's parameters make, too.
        probes: Random signs of every sample; errors fall as 1/√probes.
        seed: Of the probes.
        resume: Steps that training has taken already, of a run whose log goes on. Looks that the log
            holds are not taken again, so training must retrace its own path from there.
        name: Of the run; that of the log if not given.
        config: What else to say about the run, such as ``{"lr": 0.1}``.
        outputs: As of :class:`ntkscope.NTK`.
        layer: As of :class:`ntkscope.NTK`.
        batch_dim: As of :class:`ntkscope.NTK`.

    Attributes:
        steps: Optimiser steps so far.
        looks: All looks so far, those of a resumed run too.
        counting: Whether something counts the steps, as ``step()`` does; where nothing does, every
            ``update()`` is one.

    Raises:
        TypeError: As :class:`ntkscope.NTK`, and for an option of the wrong kind.
        ValueError: As :class:`ntkscope.NTK` and ``NTK.fingerprint``; if the log holds a run already, or
            one that does not fit.

    >>> import torch
    >>> model = nn.Linear(3, 2)
    >>> tracker = Tracker(model, torch.eye(3), every=10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     model(torch.eye(3)).square().sum().backward()
    ...     optimizer.step()
    ...     look = tracker.step()
    >>> [look.step for look in tracker.looks], round(tracker.compute()["alignment_start"].value, 6)
    ([0, 10, 20], 1.0)
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        every: int | Literal["auto"] = 100,
        metrics: Sequence[str] = DEFAULT,
        targets: Any = None,
        log: Any = None,
        overhead: float = 0.05,
        *,
        by: Literal["layer"] | None = None,
        probes: int = 2,
        seed: int = 0,
        resume: int | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        outputs: Callable[[Any], Any] | None = None,
        layer: str | None = None,
        batch_dim: Any = 0,
    ) -> None:
        self._model = model
        self._observer = Observer(metrics, targets, by, probes, seed)
        self._schedule = make_schedule(every, overhead)
        self._path, self._sinks = split_logs(log)
        self._options: dict[str, Any] = {"outputs": outputs, "layer": layer, "batch_dim": batch_dim}
        self._name = name or (self._path.stem if self._path else type(model).__name__)
        self._config = dict(config or {})
        self._asked = {
            "every": every, "overhead": overhead, "metrics": list(self._observer.metrics),
            "by": by, "probes": probes, "seed": seed, "targets": targets is not None,
        }  # fmt: skip
        self._inputs = inputs
        self.counting = False
        self._file: LogFile | None = None
        self._start(resume)

    def _start(self, resume: int | None) -> None:
        self.steps = 0 if resume is None else whole_step(resume)
        self.looks: list[Look] = []
        self._failures: dict[int, str] = {}
        self._watched = 0.0
        self._kept: dict[int, Fingerprint] = {}
        self._id = uuid.uuid4().hex
        self._observer.first = self._observer.last = None
        old = self._open(resume)
        self._watch = Stopwatch(self.looks[-1].training if self.looks else 0.0)
        with evaluating(self._model):
            self._first = NTK(self._model, self._inputs, **self._options)
            # Once for nothing: what is traced and loaded once is no part of a look.
            metrics, *_ = self._observer.measure(self._first, self._model)
            for estimate in metrics.values():
                estimate.interval()
        if self._path is not None and old is None:
            self._file = LogFile(self._path, self._id)
            self._file.append("run", self._header())
        elif self._file is not None:
            self._file.append("resume", {"step": self.steps})
        self._watch = Stopwatch(self.looks[-1].training if self.looks else 0.0)
        if self._schedule.expects(self.steps) and self._is_new(self.steps):
            self._look({}, counted=False)

    # In the loop.

    def step(self, **values: Any) -> Look | None:
        """Counts an optimiser step, and looks at the kernel if it is time.

        Args:
            **values: Plain numbers to keep beside the look, such as ``loss=loss``; read only at looks.

        Returns:
            The look, or ``None`` where it was not time.
        """
        self.counting = True
        self.steps += 1
        self._watched = self._watch.watched
        if not (self._is_new(self.steps) and self._schedule.due(self.steps, self._watch)):
            return None
        try:
            return self._look(values)
        except Exception as error:  # whatever it is, watching must not end the training
            self._fail(error)
            return None

    def update(self, step: int | None = None, **values: Any) -> Look:
        """Looks at the kernel now, whatever the schedule says.

        Args:
            step: Steps taken; if not given, those that were counted, one more than at the last look where
                nothing counts.
            **values: As of :meth:`step`.

        Returns:
            The look; the last one where no step was counted since.

        Raises:
            ValueError: As a new NTK, and if there is a look at that step or a later one already.
        """
        last = self.looks[-1].step if self.looks else -1
        if step is not None:
            self.steps = whole_step(step)
        elif not self.counting:
            self.steps = max(self.steps, last + 1)
        elif self.steps == last:
            return self.looks[-1]
        if not self._is_new(self.steps):
            raise ValueError(f"there is a look at step {last}, found step {self.steps}; give a later step")
        return self._look(values)

    def compute(self) -> dict[str, Estimate]:
        """The numbers of the last look by name.

        Raises:
            ValueError: If there was none.
        """
        if not self.looks:
            raise ValueError("the kernel was not looked at yet; call update() first")
        return dict(self.looks[-1].metrics)

    def reset(self) -> None:
        """Forgets all looks and starts anew from the kernel of this moment.

        Raises:
            ValueError: If there is a log, which holds one run.
        """
        if self._path is not None:
            raise ValueError(f"the log {self._path} holds one run; make a new Tracker with another log")
        self._start(None)

    # What was seen.

    @property
    def run(self) -> Run:
        """All that was seen, as the report and the figures take it."""
        return Run(
            self._name,
            self._id,
            tuple(self.looks),
            self._settings(),
            self._config,
            versions(),
            self._failures,
            kept=self._kept,
            folder=self._path.parent if self._path else Path(),
        )

    @property
    def overhead(self) -> float:
        """Seconds of looks over seconds of training up to the last step; the set-up is left out."""
        return self._watch.looking / self._watched if self._watched else 0.0

    def plot(self, metrics: Sequence[str] | None = None) -> Figure:
        """The curves with their 95% intervals; ``savefig`` writes it.

        Args:
            metrics: Which; all that were watched if not given.
        """
        from ntkscope.tracking.figures import curves_figure

        return curves_figure([self.run], metrics)

    # A look.

    def _is_new(self, step: int) -> bool:
        return not self.looks or step > self.looks[-1].step

    def _look(self, values: Mapping[str, Any], counted: bool = True) -> Look:
        synchronize(self._first.device)
        since, training = self._watch.now(), self._watch.trained
        try:
            with evaluating(self._model):
                kernel = self._first.at(self._model)
                metrics, layers, cost, fingerprint = self._observer.measure(kernel, self._model)
            name = None if self._file is None else self._file.save(fingerprint, self.steps)
            if self._file is None:
                self._kept[self.steps] = fingerprint
            plain = {key: plain_number(value) for key, value in values.items()}
            spent = Cost(cost.products, cost.vjps, cost.jvps, self._watch.now() - since)
            look = Look(self.steps, metrics, layers, plain, training, spent, name)
            if self._file is not None:
                self._file.append("look", look.to_dict())
            self.looks.append(look)
            self._observer.keep(fingerprint)
            if self._sinks:
                send(self._sinks, {**look.flat(), **plain})
        finally:
            self._watch.pause(since, counted)
        return look

    def _fail(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        self._failures[self.steps] = reason
        if self._file is not None:
            self._file.append("failed", {"step": self.steps, "reason": reason})
        warnings.warn(f"no look at step {self.steps}: {reason}", RuntimeWarning, stacklevel=3)

    # The log.

    def _open(self, resume: int | None) -> Run | None:
        """The run that the log holds, taken up; ``None`` if it is a new one."""
        if self._path is None:
            if resume:
                raise ValueError("resume= goes on with a log, and there is none; pass log= too")
            return None
        old = open_log(self._path, resume, self._asked)
        if old is not None:
            self._id, self._file = old.id, LogFile(self._path, old.id)
            self.looks, self._failures = list(old.looks), dict(old.failures)
            for look in (old.looks[0], old.looks[-1]) if old.looks else ():
                self._observer.keep(Fingerprint.load(self._path.parent / str(look.fingerprint)))
        return old

    def _header(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self._name,
            "settings": self._settings(),
            "config": plain_config(self._config),
            "versions": versions(),
        }

    def _settings(self) -> dict[str, Any]:
        return {"model": type(self._model).__name__, **sizes(self._first), **self._asked}
