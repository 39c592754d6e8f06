"""Tests that are expected to fail until their fault is mended: a fix takes its line out."""

from __future__ import annotations

__all__ = ["KNOWN", "KNOWN_OF_OLD_TORCH"]

#: Reasons by file and name of the test (``"test_x::test_y[case]"``), on the torch that constraints.txt pins.
KNOWN: dict[str, str] = {}

_PRODUCTS = "products go through torch.func, which knew no saved-tensor hooks and no sparse buffers then"

#: What fails on the lowest torch besides.
KNOWN_OF_OLD_TORCH = {
    "test_plain_autograd::test_a_sparse_buffer": _PRODUCTS,
    "test_plain_autograd::test_checkpointing": _PRODUCTS,
}
