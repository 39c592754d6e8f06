"""Watching the kernel while a model trains: the tracker, its log, and what is drawn of it."""

from __future__ import annotations

from ntkscope.tracking.analysis import analyze
from ntkscope.tracking.look import Look
from ntkscope.tracking.moment import Analysis
from ntkscope.tracking.page import plots_of, write_figures, write_report
from ntkscope.tracking.reader import read_runs
from ntkscope.tracking.run import Run
from ntkscope.tracking.series import natural_order, steps_of, watch_series
from ntkscope.tracking.tracker import Tracker

__all__ = [
    "Analysis",
    "Look",
    "Run",
    "Tracker",
    "analyze",
    "natural_order",
    "plots_of",
    "read_runs",
    "steps_of",
    "watch_series",
    "write_figures",
    "write_report",
]
