"""What the metrics are called: a module of its own, so that help and completion load nothing else."""

from __future__ import annotations

__all__ = ["ALL_METRICS", "METRICS", "PAIR_METRICS", "SYMBOLS", "TITLES"]

#: How people call every metric, in the order of tables.
TITLES = {
    "trace": "trace",
    "frobenius_norm": "Frobenius norm",
    "effective_rank": "effective rank",
    "alignment": "alignment",
}

#: What every metric is.
SYMBOLS = {
    "trace": "tr K",
    "frobenius_norm": "‖K‖",
    "effective_rank": "(tr K)² / ‖K‖²",
    "alignment": "cos(K, K′)",
}

#: The metrics of one kernel alone, in the order of tables and files.
METRICS = tuple(name for name in TITLES if name != "alignment")

#: The metrics of one kernel and of two, as ``--metrics`` takes them.
ALL_METRICS, PAIR_METRICS = ",".join(METRICS), ",".join(TITLES)
