"""The command line writes into what is there: devices, pipes and links stay what they are."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ntkscope.apps.cli import app

MODELS = """
import torch
from torch import nn

def tiny():
    torch.manual_seed(0)
    return nn.Linear(3, 2), torch.ones(2, 3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "truth_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def _measure(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["measure", "truth_models:tiny", *arguments])


def test_a_pipe_is_written_into(folder: Path) -> None:
    pipe, read = folder / "numbers", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    result = _measure("--json", str(pipe))
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert result.exit_code == 0
    reader.join(2)
    assert json.loads(read[0])


def test_a_device_is_written_into(folder: Path) -> None:
    """A terminal, whose folder lets no file be made: a wrong way cannot do harm."""
    outer, inner = os.openpty()
    try:
        result = _measure("--json", os.ttyname(inner))
        assert stat.S_ISCHR(os.stat(os.ttyname(inner)).st_mode)
        assert result.exit_code == 0
        assert b"{" in os.read(outer, 4096)
    finally:
        os.close(inner)
        os.close(outer)


def test_a_link_is_followed(folder: Path) -> None:
    (folder / "results").mkdir()
    target, link = folder / "results" / "run.json", folder / "latest.json"
    target.write_text("{}")
    link.symlink_to(target)
    assert _measure("--json", str(link)).exit_code == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())


def test_a_link_to_a_plot_is_followed(folder: Path) -> None:
    target, link = folder / "run.svg", folder / "latest.svg"
    target.write_text("")
    link.symlink_to(target.name)
    assert _measure("--plot", str(link)).exit_code == 0
    assert link.is_symlink()
    assert "svg" in target.read_text()


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_is_read_only_is_kept(folder: Path, option: str) -> None:
    """By its mode: root, who may write anywhere, is refused as well."""
    path = folder / "kept.svg"
    path.write_text("precious")
    path.chmod(0o444)
    result = _measure(option, str(path))
    assert result.exit_code != 0
    assert path.read_text() == "precious"


@pytest.mark.parametrize("other", ["both.svg", "./both.svg", "link.svg"])
def test_one_path_for_two_files(folder: Path, other: str) -> None:
    (folder / "both.svg").write_text("old")
    (folder / "link.svg").symlink_to("both.svg")
    result = _measure("--json", "both.svg", "--plot", other)
    assert result.exit_code != 0
    assert (folder / "both.svg").read_text() == "old"
