"""Figures of matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import ntkscope
from ntkscope.plots import heatmap


def test_a_heat_map_shows_a_matrix_and_its_doubts() -> None:
    ntk = ntkscope.NTK(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), torch.eye(3))
    axis = Figure().subplots()
    exact = ntk.partial_trace("batch", method="exact")
    picture = heatmap(axis, exact, cosines=True, labels=["a", "b", "c"])
    np.testing.assert_allclose(np.diagonal(picture.get_array()), 1)
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b", "c"]
    assert not axis.lines
    axis = Figure().subplots()
    values = np.array([[2.0, 0.1], [0.1, -1.0]])
    heatmap(axis, ntkscope.ArrayEstimate(values, np.full((2, 2), 0.2)))
    assert len(axis.lines[0].get_xdata()) == 2
    axis = Figure().subplots()
    heatmap(axis, ntk.part_alignments())
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1"]
    with pytest.raises(ValueError, match="a heat map shows a matrix"):
        heatmap(axis, ntk.squared_gradients())
