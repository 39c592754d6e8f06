"""Fingerprints: all of a kernel that its metrics and alignments need, kept without the model."""

from __future__ import annotations

from ntkscope.fingerprints.fingerprint import Fingerprint
from ntkscope.fingerprints.many import Matrix, alignment_matrix, velocity

__all__ = ["Fingerprint", "Matrix", "alignment_matrix", "velocity"]
