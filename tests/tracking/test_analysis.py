"""One moment: its numbers against the dense kernel, and its page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ntkscope
from ntkscope.tracking import analysis
from tracking.training import problem


def test_the_numbers_are_those_of_the_dense_kernel() -> None:
    model, inputs, targets = problem()
    before = [p.clone() for p in model.parameters()]
    found = ntkscope.analyze(model, inputs, targets)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    K = ntkscope.NTK(model.eval(), inputs).to_dense().double()
    y = nn.functional.one_hot(targets, 3).double().reshape(-1)
    truth = {
        "trace": float(K.trace()),
        "frobenius_norm": float(K.norm()),
        "effective_rank": float(K.trace() ** 2 / K.norm() ** 2),
        "target_alignment": float(y @ K @ y / (K.norm() * (y @ y))),
    }
    assert found.metrics.keys() == truth.keys()
    for name, value in truth.items():
        assert found.metrics[name].value == pytest.approx(value, rel=0.05)
    assert found.eigenvalues == pytest.approx(torch.linalg.eigvalsh(K).flip(0).numpy(), abs=1e-4)
    assert found.order is not None
    assert found.order.tolist() == [0, 3, 1, 4, 2, 5]
    assert found.classes is not None
    assert found.classes.tolist() == [0, 0, 1, 1, 2, 2]
    P = torch.einsum("iaja->ij", K.reshape(6, 3, 6, 3)).numpy()
    cosines = (P / np.sqrt(np.outer(np.diag(P), np.diag(P))))[np.ix_(found.order, found.order)]
    assert found.map == pytest.approx(cosines, abs=0.15)
    assert list(found.layers) == ["0", "1", "4"]
    assert str(found).startswith("trace: ")


def test_the_page(tmp_path: Path) -> None:
    model, inputs, targets = problem()
    ntkscope.analyze(model, inputs, targets).save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 4
    said = re.findall(r"<title>([^<]+)</title>", text)
    assert any(one.startswith("sample 3 (class 0), sample 1 (class 1): ") for one in said)
    assert any(one.startswith("eigenvalue 1: ") for one in said)
    assert any(one.startswith("4: ") for one in said)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    with pytest.raises(ValueError, match=r"must end in \.html"):
        ntkscope.analyze(model, inputs).save(tmp_path / "page.txt")


def test_what_cannot_be_found_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            return y - y.mean(0)

    monkeypatch.setattr(analysis, "MOST_ROWS", 5)
    found = ntkscope.analyze(Coupled(), torch.eye(3), torch.ones(3, 2))
    assert found.eigenvalues is None
    assert found.map is None
    assert not found.layers
    assert len(found.notes) == 2
    assert "the spectrum is left out: n = 6 is more than 5" in found.notes
    found.save(tmp_path / "page.html")
    assert "Left out" in (tmp_path / "page.html").read_text(encoding="utf-8")
