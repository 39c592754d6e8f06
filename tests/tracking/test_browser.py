"""The report in a real browser: drawn at every width, without an error, and asking for nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread

from ntkscope import Tracker
from ntkscope.tracking import write_report
from tracking.training import run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trackers: list[Tracker] = []
    run(6, lambda t: trackers.append(
        Tracker(t.model, t.inputs, 2, targets=t.targets, by="layer")
    ) or trackers[0])  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([trackers[0].run], path)
    return path


def _browse(page: Path, folder: Path, *options: str) -> str:
    """What the browser says on stderr."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120).stderr


@pytest.mark.parametrize("width", [1280, 500])
def test_it_is_drawn_without_an_error(page: Path, tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    said = _browse(page, tmp_path, f"--screenshot={picture}", f"--window-size={width},2400")
    assert "CONSOLE" not in said
    pixels = imread(picture)[..., :3]
    assert pixels.shape[1] == width
    # The blue of the curves is there, and the page is no wider than the window: its right edge is paper.
    blue = (abs(pixels - [0.0, 0x72 / 255, 0xB2 / 255]).max(-1) < 0.02).sum()
    assert blue > 500
    assert (pixels[:, -4:] > 0.9).all()


def test_an_error_would_be_seen(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8") + "<script>console.error('no')</script>")
    assert "CONSOLE" in _browse(broken, tmp_path, "--dump-dom")


def test_it_prints(page: Path, tmp_path: Path) -> None:
    _browse(page, tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
