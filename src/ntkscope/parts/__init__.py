"""Kernels in parts: partial traces, the diagonal, and splits by layer, sample or output."""
