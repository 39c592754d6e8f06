"""Fingerprints in files: bit for bit, whole or not at all, and errors that say what was found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from ntkscope import NTK, Fingerprint


def taken(**options: object) -> Fingerprint:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    return NTK(model, torch.randn(130, 5)).fingerprint(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", [None, "layer"])
def test_comes_back_bit_for_bit(tmp_path: Path, by: str | None) -> None:
    found = taken(by=by, seed=3)
    path = tmp_path / "one.safetensors"
    found.save(path)
    loaded = Fingerprint.load(str(path))
    assert (loaded.layers, loaded.batch, loaded.n, loaded.n_params) == (
        found.layers, found.batch, found.n, found.n_params,
    )  # fmt: skip
    for name, tiles in found.tiles.items():
        assert loaded.tiles[name].dtype == tiles.dtype == np.float32
        np.testing.assert_array_equal(loaded.tiles[name], tiles)
    assert loaded.trace() == found.trace()
    assert loaded.effective_rank() == found.effective_rank()
    assert loaded.distance(found).value == 0
    assert repr(loaded) == repr(found)


def test_a_double_keeps_its_digits(tmp_path: Path) -> None:
    model = nn.Linear(3, 2).double()
    NTK(model, torch.eye(3).double()).fingerprint().save(tmp_path / "one.safetensors")
    assert Fingerprint.load(tmp_path / "one.safetensors").tiles[""].dtype == np.float64


def test_loading_needs_no_model(tmp_path: Path) -> None:
    taken().save(tmp_path / "one.safetensors")
    code = (
        "import sys; from ntkscope.fingerprints import Fingerprint\n"
        f"print(Fingerprint.load({str(tmp_path / 'one.safetensors')!r}).trace().value)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) == taken().trace().value


def test_what_was_there_stays_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.safetensors"
    taken().save(path)
    before = path.read_bytes()

    def broken(tensors: object, target: Path, metadata: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.numpy.save_file", broken)
    with pytest.raises(OSError, match="no space left"):
        taken(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        taken().save(tmp_path / "one.npz")
    with pytest.raises(ValueError, match="there is no folder"):
        taken().save(tmp_path / "none" / "one.safetensors")
    with pytest.raises(FileNotFoundError):
        Fingerprint.load(tmp_path / "none.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    path.write_text("no tensors")
    with pytest.raises(ValueError, match=r"cannot read .* as a fingerprint: .*; pass a file that"):
        Fingerprint.load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"holds no fingerprint; pass a file that Fingerprint\.save wrote"):
        Fingerprint.load(path)


def test_other_versions_and_torn_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    found = taken()
    plain = {
        "outputs": found.outputs, "n_params": found.n_params, "probes": 2, "seed": 0, "inputs": found.inputs,
        "epsilon": found.epsilon, "cost": found.cost.to_dict(), "block": found.ring.block,
        "offsets": list(found.ring.offsets), "layers": [""],
    }  # fmt: skip

    def write(schema: str = "1", without: str = "", **changed: np.ndarray) -> None:
        tensors = {"order": found.ring.order, "tiles/": found.tiles[""]} | changed
        kept = {name: value for name, value in plain.items() if name != without}
        tensors = {name: value for name, value in tensors.items() if name != without}
        save_file(
            tensors,
            path,
            {"format": "ntkscope.fingerprint", "schema": schema, "fingerprint": json.dumps(kept)},
        )

    write()
    assert Fingerprint.load(path).trace() == found.trace()
    write(schema="2")
    with pytest.raises(ValueError, match="schema version '2', expected 1; update ntkscope"):
        Fingerprint.load(path)
    write(without="tiles/")
    with pytest.raises(ValueError, match="a fingerprint that lacks 'tiles/'"):
        Fingerprint.load(path)
    write(without="probes")
    with pytest.raises(ValueError, match="lacks the field 'probes'"):
        Fingerprint.load(path)
    write(**{"tiles/": found.tiles[""][:1]})
    with pytest.raises(ValueError, match=r"of shape \(1, .*, expected \("):
        Fingerprint.load(path)
