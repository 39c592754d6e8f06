"""Errors that callers tell apart by more than their words."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import ntkscope
from ntkscope.errors import StateError


def test_a_state_that_is_no_tensor_carries_its_remedy() -> None:
    with pytest.raises(StateError) as caught:
        ntkscope.NTK(torch.nn.GRU(3, 4), torch.ones(5, 2, 3))
    error = caught.value
    assert isinstance(error, TypeError)
    assert error.found == "the model returned a tuple of (Tensor, Tensor), expected one tensor"
    assert error.remedy == "choose the state, such as outputs=lambda y: y[0]"
    assert str(error) == f"{error.found}; {error.remedy}"


def test_other_errors_of_the_state_are_no_such_errors() -> None:
    for outputs in (lambda y: y.argmax(1), lambda y: y[:0]):
        with pytest.raises((TypeError, ValueError)) as caught:
            ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3), outputs=outputs)
        assert not isinstance(caught.value, StateError)


def test_it_can_be_sent_to_another_process() -> None:
    error = StateError("found", "remedy")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert isinstance(twin, StateError)
        assert (twin.found, twin.remedy, str(twin)) == ("found", "remedy", "found; remedy")
