"""What the metrics are called: a module of its own, so that help and completion load nothing else."""

from __future__ import annotations

__all__ = ["ALL_METRICS", "METRICS", "PAIR_METRICS", "SPECTRAL", "SYMBOLS", "TITLES", "title_of"]

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
    "operator_norm": "‖K‖₂",
    "stable_rank": "‖K‖² / ‖K‖²₂",
    "entropy": "-Σ p log p, p = λ/tr K",
}

#: Numbers of eigenvalues, which ``ntkscope measure`` takes besides; each is a verb of its own.
SPECTRAL = {
    "operator_norm": "operator norm",
    "stable_rank": "stable rank",
    "entropy": "entropy",
}

#: The metrics of one kernel alone, in the order of tables and files.
METRICS = tuple(name for name in TITLES if name != "alignment")

#: The metrics of one kernel and of two, as ``--metrics`` takes them.
ALL_METRICS, PAIR_METRICS = ",".join(METRICS), ",".join(TITLES)


def title_of(metric: str) -> str:
    """How people call a metric.

    >>> title_of("stable_rank"), title_of("my_metric")
    ('stable rank', 'my metric')
    """
    return TITLES.get(metric) or SPECTRAL.get(metric) or metric.replace("_", " ")
