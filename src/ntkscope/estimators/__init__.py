"""The linear-algebra half: traces, norms and inner products of operators seen through products.

Works for anything with ``shape`` and ``@``; knows nothing of models.
"""

from ntkscope.estimators.blocks import Map, as_map
from ntkscope.estimators.hutchinson import HutchinsonRun
from ntkscope.estimators.methods import METHODS
from ntkscope.estimators.metrics import (
    Growth,
    alignment,
    effective_rank,
    frobenius_norm,
    inner_product,
    measure,
    measure_all,
    trace,
)
from ntkscope.estimators.run import Meter, Progress, Run, drive

__all__ = [
    "METHODS",
    "Growth",
    "HutchinsonRun",
    "Map",
    "Meter",
    "Progress",
    "Run",
    "alignment",
    "as_map",
    "drive",
    "effective_rank",
    "frobenius_norm",
    "inner_product",
    "measure",
    "measure_all",
    "trace",
]
