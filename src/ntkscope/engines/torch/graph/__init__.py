"""The state of one sample as a graph of ATen operators, opened at the uses of its parameters."""
