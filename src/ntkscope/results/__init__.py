"""What every method returns, and how it is written down and read back."""

from __future__ import annotations

from ntkscope.results.estimate import Cost, Estimate, student_t_quantile
from ntkscope.results.measurement import Measurement, Measurements

__all__ = ["Cost", "Estimate", "Measurement", "Measurements", "student_t_quantile"]
