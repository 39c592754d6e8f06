"""What every method returns, and how it is written down and read back."""

from __future__ import annotations

from ntkscope.results.array import ArrayEstimate
from ntkscope.results.estimate import Cost, Estimate, student_t_quantile
from ntkscope.results.measurement import Measurement
from ntkscope.results.measurements import Measurements, named_kernels
from ntkscope.results.partial import PartialTrace
from ntkscope.results.split import PartAlignments, Split

__all__ = [
    "ArrayEstimate",
    "Cost",
    "Estimate",
    "Measurement",
    "Measurements",
    "PartAlignments",
    "PartialTrace",
    "Split",
    "named_kernels",
    "student_t_quantile",
]
