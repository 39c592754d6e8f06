"""Gradients of samples from a model's own forward and backward pass: hooks on layers, nothing traced."""
