"""Measure the empirical Neural Tangent Kernel of real networks, without forming it.

>>> import torch, ntkscope
>>> ntk = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))
>>> ntk.trace(method="exact").value
12.0
"""

from __future__ import annotations

from ntkscope import estimators
from ntkscope.engines.torch.rules import Rule, add_rule
from ntkscope.ntk import NTK, measure_all
from ntkscope.results import Cost, Estimate, Measurement, Measurements
from ntkscope.runs.eigenpairs import Eigenpairs
from ntkscope.runs.spectrum import Spectrum
from ntkscope.settings import Options
from ntkscope.verbs.cross import CrossKernel, KernelRegression
from ntkscope.verbs.products import trace_product

__version__ = "0.1.0"

__all__ = [
    "NTK",
    "Cost",
    "CrossKernel",
    "Eigenpairs",
    "Estimate",
    "KernelRegression",
    "Measurement",
    "Measurements",
    "Options",
    "Rule",
    "Spectrum",
    "__version__",
    "add_rule",
    "estimators",
    "measure_all",
    "trace_product",
]
