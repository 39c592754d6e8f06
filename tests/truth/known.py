"""Tests that fail until their class of faults is mended: a fix takes its lines out."""

from __future__ import annotations

__all__ = ["KNOWN", "KNOWN_OF_OLD_TORCH"]

_REASONS = {
    1: "class 1: a copy is measured, not the user's own module",
    2: "class 2: one scalar with the dtype's tolerance lets small parts pass",
    3: "class 3: the imaginary part is dropped",
    4: "class 4: no gradient is recorded in inference mode",
    5: "class 5: states without gradients; inner gradients are not recorded",
    6: "class 6: products go through torch.func alone",
    7: "class 7: reverse over reverse is never verified",
    8: "class 8: operations that FX cannot print, asserts, overloads",
    9: "class 9: forms of models and inputs",
    10: "class 10: more is said than is known",
    11: "class 11: error bars that are too sure",
    12: "class 12: overflow, cancellation, empty bases",
    13: "class 13: checks that look at too little",
    14: "class 14: switches without a lock",
    15: "class 15: runs that cannot end well",
    16: "class 16: files are replaced",
}

_FAILING = {
    6: [
        "test_plain_autograd::test_reentrant_checkpointing",
    ],
    15: [
        "test_endings::test_a_tolerance_that_costs_more_than_exact[0.0001-per-sample]",
        "test_endings::test_a_tolerance_that_costs_more_than_exact[1e-06-per-sample]",
    ],
}

#: Reasons by file and name of the test, on the torch that constraints.txt pins.
KNOWN = {name: _REASONS[number] for number, names in _FAILING.items() for name in names}

#: What fails on the lowest torch besides: its torch.func knows no saved-tensor hooks and no sparse buffers.
KNOWN_OF_OLD_TORCH = {
    "test_plain_autograd::test_a_sparse_buffer": _REASONS[6],
    "test_plain_autograd::test_checkpointing": _REASONS[6],
}
