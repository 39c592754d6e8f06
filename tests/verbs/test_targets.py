"""Numbers of targets and losses against dense float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ntkscope import NTK
from zoo import Case, each

SOME = each(["mlp", "gru", "tied-embedding", "batch-norm-training", "one-state", "embedding-padding"])


def _targets(ntk: NTK, seed: int = 0) -> torch.Tensor:
    return torch.randn(ntk.output_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SOME
def test_exact_over_the_zoo(case: Case) -> None:
    ntk, kernel = case.shared(), case.dense().kernel
    y = _targets(ntk)
    flat = y.reshape(-1)
    expected = float(flat @ kernel @ flat / (kernel.norm() * flat @ flat))
    assert ntk.target_alignment(y, method="exact").value == pytest.approx(expected, rel=1e-9)
    assert ntk.target_alignment(flat.numpy(), method="exact").value == pytest.approx(expected, rel=1e-9)
    inverse = float(flat @ torch.linalg.solve(kernel + 0.3 * torch.eye(ntk.n).double(), flat))
    assert ntk.inverse_form(y, 0.3, "exact").value == pytest.approx(inverse, rel=1e-9)
    found = ntk.loss_speed(lambda h: (h - y).square().sum() / 2)
    residual = (ntk.state - y).reshape(-1)
    assert found.value == pytest.approx(float(residual @ kernel @ residual), rel=1e-9)
    assert found.cost.vjps == 1


def _model() -> NTK:
    torch.manual_seed(0)
    inputs = torch.randn(30, 5, dtype=torch.float64)
    return NTK(nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 4)).double(), inputs)


def test_centred_alignment_takes_out_the_samples_mean() -> None:
    ntk = _model()
    y, kernel = _targets(ntk) + 3, ntk.to_dense()
    away = torch.kron(torch.eye(30) - 1 / 30, torch.eye(4)).double()
    centred, flat = away @ kernel @ away, away @ y.reshape(-1)
    expected = float(flat @ centred @ flat / (centred.norm() * flat @ flat))
    assert ntk.target_alignment(y, centered=True, method="exact").value == pytest.approx(expected, rel=1e-9)
    found = ntk.target_alignment(y, centered=True, rtol=0.02)
    assert found.converged or found.stderr == 0
    assert found.value == pytest.approx(expected, rel=0.08)
    first = nn.GRU(2, 3)
    rnn = NTK(first, torch.randn(4, 5, 2), outputs=lambda out: out[0], batch_dim=1)
    assert 0 <= rnn.target_alignment(torch.ones(4, 5, 3).cumsum(1), True, axis=1).value <= 1


def test_energies_are_shares() -> None:
    ntk = _model()
    y = _targets(ntk)
    values, vectors = torch.linalg.eigh(ntk.to_dense())
    expected = ((vectors.T @ y.reshape(-1)) ** 2 / y.square().sum()).flip(0)[:5]
    np.testing.assert_allclose(ntk.target_energy(y, 5), expected, atol=1e-9)
    np.testing.assert_allclose(ntk.target_energy(y, pairs=ntk.eigenpairs(5, rtol=1e-10)), expected, atol=1e-5)
    assert len(values) == ntk.n


@pytest.mark.parametrize("shift", [1.0, 1e-2])
def test_conjugate_gradients_bracket_the_truth(shift: float) -> None:
    ntk = _model()
    y = _targets(ntk)
    truth = ntk.inverse_form(y, shift, "exact").value
    found = ntk.inverse_form(y, shift, "cg", rtol=1e-5)
    assert found.converged
    assert found.stderr is not None
    assert abs(found.value - truth) <= found.stderr * (1 + 1e-6)
    assert found.stderr <= 1e-5 * truth
    few = ntk.inverse_form(y, shift, "cg", rtol=1e-8, max_products=4)
    assert not few.converged
    assert few.stderr is not None
    assert abs(few.value - truth) <= few.stderr


def test_shares_of_terms_add_up() -> None:
    ntk = _model()
    terms = {"fit": lambda h: h[:10].square().sum(), "edge": lambda h: -0.1 * h[10:].sum()}
    shares = ntk.loss_speeds(terms)
    whole = ntk.loss_speed(lambda h: sum(term(h) for term in terms.values()))
    assert sum(share.value for share in shares.values()) == pytest.approx(whole.value, rel=1e-12)
    assert list(shares) == ["fit", "edge"]


def test_classes_are_one_hot_targets() -> None:
    ntk = _model()
    classes = torch.arange(30) % 4
    one_hot = torch.nn.functional.one_hot(classes, 4).double()
    expected = ntk.target_energy(one_hot, 3).tolist()
    assert ntk.target_energy(classes, 3).tolist() == expected
    assert ntk.target_energy(classes.tolist(), 3).tolist() == expected
    with pytest.raises(ValueError, match="classes from 0 to 4, expected 0 to 3"):
        ntk.target_energy(torch.arange(30) % 5)


def test_bad_requests_name_the_remedy() -> None:
    ntk = _model()
    with pytest.raises(ValueError, match=r"targets have shape \(29,\), expected the state's"):
        ntk.target_alignment(torch.zeros(29))
    with pytest.raises(ValueError, match="not finite"):
        ntk.target_energy(torch.full((30, 4), torch.nan))
    with pytest.raises(ValueError, match="zero, or the same for all samples"):
        ntk.target_alignment(torch.ones(30, 4), centered=True)
    with pytest.raises(ValueError, match="no axis 2"):
        ntk.target_alignment(torch.ones(30, 4), centered=True, axis=2)
    with pytest.raises(ValueError, match="targets are zero"):
        ntk.target_energy(torch.zeros(30, 4))
    with pytest.raises(ValueError, match="shift λ must be positive"):
        ntk.inverse_form(torch.ones(30, 4), 0.0)
    with pytest.raises(ValueError, match="choose one of 'auto', 'exact', 'cg'"):
        ntk.inverse_form(torch.ones(30, 4), 1.0, "lu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"found shape \(30, 4\); add .sum\(\)"):
        ntk.loss_speed(lambda h: h)
    with pytest.raises(TypeError, match="found float"):
        ntk.loss_speed(lambda h: 1.0)
    with pytest.raises(ValueError, match="does not depend on the state"):
        ntk.loss_speed(lambda h: torch.ones(()))
    with pytest.raises(ValueError, match="gradient of the loss is not finite"):
        ntk.loss_speed(lambda h: (h - h).sqrt().sum())
    with pytest.raises(ValueError, match="there is no term"):
        ntk.loss_speeds({})
