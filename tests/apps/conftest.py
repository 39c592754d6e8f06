from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from terminal import MODELS, weights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, with models, inputs and checkpoints."""
    (tmp_path / "toy_models.py").write_text(MODELS)
    (tmp_path / "toy_broken.py").write_text("import no_such_package\n")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(5, 6)))
    np.savez(tmp_path / "wide.npz", x=rng.normal(size=(5, 7)))
    np.savez(tmp_path / "two.npz", values=rng.normal(size=(5, 4)), index=np.arange(5))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "toy_models", raising=False)
    for seed in (1, 2):
        save_file(weights(seed), tmp_path / f"w{seed}.safetensors")
    return tmp_path
