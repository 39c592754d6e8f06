"""Variants of the metrics: centred over the samples, and of the population that they are drawn from."""
