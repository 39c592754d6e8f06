"""Measure the empirical Neural Tangent Kernel of real networks, without forming it.

>>> import torch, ntkscope
>>> ntk = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))
>>> ntk.trace(method="exact").value
12.0
"""

from __future__ import annotations

from ntkscope import estimators
from ntkscope.engines.torch.rules import Rule, add_rule
from ntkscope.fingerprints import Fingerprint, alignment_matrix, velocity
from ntkscope.ntk import NTK, measure_all
from ntkscope.results import Cost, Estimate, Measurement, Measurements
from ntkscope.settings import Options
from ntkscope.tracking import Tracker

__version__ = "0.1.0"

__all__ = [
    "NTK",
    "Cost",
    "Estimate",
    "Fingerprint",
    "Measurement",
    "Measurements",
    "Options",
    "Rule",
    "Tracker",
    "__version__",
    "add_rule",
    "alignment_matrix",
    "estimators",
    "measure_all",
    "velocity",
]
