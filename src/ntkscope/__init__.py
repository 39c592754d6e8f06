"""Measure the empirical Neural Tangent Kernel of real networks, without forming it.

>>> import torch, ntkscope
>>> ntk = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))
>>> ntk.trace(method="exact").value
12.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkscope import estimators, penalties
    from ntkscope.engines.torch.rules import Rule, add_rule
    from ntkscope.fingerprints import Fingerprint, alignment_matrix, velocity
    from ntkscope.ntk import NTK, measure_all
    from ntkscope.results import (
        ArrayEstimate,
        Cost,
        Estimate,
        Measurement,
        Measurements,
        PartAlignments,
        PartialTrace,
        Split,
    )
    from ntkscope.runs.eigenpairs import Eigenpairs
    from ntkscope.runs.spectrum import Spectrum
    from ntkscope.settings import Options
    from ntkscope.tracking import Tracker, analyze
    from ntkscope.verbs.cross import CrossKernel, KernelRegression
    from ntkscope.verbs.products import trace_product

__version__ = "0.1.0"

__all__ = [
    "NTK",
    "ArrayEstimate",
    "Cost",
    "CrossKernel",
    "Eigenpairs",
    "Estimate",
    "Fingerprint",
    "KernelRegression",
    "Measurement",
    "Measurements",
    "Options",
    "PartAlignments",
    "PartialTrace",
    "Rule",
    "Spectrum",
    "Split",
    "Tracker",
    "__version__",
    "add_rule",
    "alignment_matrix",
    "analyze",
    "estimators",
    "measure_all",
    "penalties",
    "trace_product",
    "velocity",
]

#: Where a public name is, as above. It is loaded when it is first asked for: torch takes a second, and
#: ``ntkscope --help`` needs none of it.
_HOMES = {
    "NTK": "ntkscope.ntk",
    "ArrayEstimate": "ntkscope.results",
    "Cost": "ntkscope.results",
    "CrossKernel": "ntkscope.verbs.cross",
    "Eigenpairs": "ntkscope.runs.eigenpairs",
    "Estimate": "ntkscope.results",
    "Fingerprint": "ntkscope.fingerprints",
    "KernelRegression": "ntkscope.verbs.cross",
    "Measurement": "ntkscope.results",
    "Measurements": "ntkscope.results",
    "Options": "ntkscope.settings",
    "PartAlignments": "ntkscope.results",
    "PartialTrace": "ntkscope.results",
    "Rule": "ntkscope.engines.torch.rules",
    "Spectrum": "ntkscope.runs.spectrum",
    "Split": "ntkscope.results",
    "Tracker": "ntkscope.tracking",
    "add_rule": "ntkscope.engines.torch.rules",
    "alignment_matrix": "ntkscope.fingerprints",
    "analyze": "ntkscope.tracking",
    "estimators": "ntkscope.estimators",
    "measure_all": "ntkscope.ntk",
    "penalties": "ntkscope.penalties",
    "trace_product": "ntkscope.verbs.products",
    "velocity": "ntkscope.fingerprints",
}

if not TYPE_CHECKING:  # so that type checkers catch a misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(_HOMES[name])
        globals()[name] = home if _HOMES[name] == f"{__name__}.{name}" else getattr(home, name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
