"""Watching the kernel while a model trains: the tracker, its log, and what is drawn of it."""

from __future__ import annotations

from ntkscope.tracking.look import Look
from ntkscope.tracking.reader import read_runs
from ntkscope.tracking.run import Run
from ntkscope.tracking.tracker import Tracker

__all__ = ["Look", "Run", "Tracker", "read_runs"]
