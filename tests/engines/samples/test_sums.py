"""The gradient of the batch comes back by parameter, whatever blocks and groups the parameters are in."""

from __future__ import annotations

import torch

from ntkscope.engines.torch.samples.sums import BatchGradient, positions_of
from zoo import INDEPENDENT, Case, each


@each(INDEPENDENT)
def test_sums_are_the_models_gradient(case: Case) -> None:
    structure = case.shared().engine.samples().jacobian
    witness = structure.function.witness()
    probe = structure.axes.to_samples(witness.probe.reshape(1, -1))
    total = BatchGradient(structure.graph, structure.function.parameters)
    for part, linear in structure.linearizations(2):
        total.add(linear.pull(probe[:, part.start : part.stop]))
    found = total.by_parameter()
    assert set(found) == set(witness.gradients)
    for name, expected in witness.gradients.items():
        own = torch.zeros_like(found[name]) if expected is None else expected.detach().reshape(-1)
        torch.testing.assert_close(found[name], own, rtol=1e-10, atol=1e-12, msg=name)


@each(["mlp", "gru", "conv2d-groups-stride-dilation"])
def test_positions_are_counted_over_all_uses(case: Case) -> None:
    structure = case.shared().engine.samples().jacobian
    positions = positions_of(structure.graph, structure.groups)
    assert set(positions) == set(structure.function.parameters)
    assert min(positions.values()) >= 1
    if case.name == "gru":
        assert positions["weight_hh_l0"] == 5
