"""Measure the empirical Neural Tangent Kernel of real networks, without forming it.

>>> import torch, ntkscope
>>> ntk = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))
>>> ntk.trace(method="exact").value
12.0
"""

from __future__ import annotations

from ntkscope import estimators, penalties
from ntkscope.engines.torch.rules import Rule, add_rule
from ntkscope.ntk import NTK, measure_all
from ntkscope.results import ArrayEstimate, Cost, Estimate, Measurement, Measurements, PartialTrace
from ntkscope.settings import Options

__version__ = "0.1.0"

__all__ = [
    "NTK",
    "ArrayEstimate",
    "Cost",
    "Estimate",
    "Measurement",
    "Measurements",
    "Options",
    "PartialTrace",
    "Rule",
    "__version__",
    "add_rule",
    "estimators",
    "measure_all",
    "penalties",
]
