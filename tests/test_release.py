"""What is released: a wheel that imports, a README that holds on the package index, and a citation."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import ntkscope

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RELATIVE = re.compile(r"\]\((?!https?:|#)[^)]*\)")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution as a release is."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    assert (folder / f"ntkscope-{ntkscope.__version__}.tar.gz").stat().st_size < 3_000_000
    (found,) = folder.glob("*.whl")
    return found


def test_a_wheel_imports_and_runs_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        names = archive.namelist()
    assert "ntkscope/py.typed" in names
    assert not [name for name in names if not name.startswith("ntkscope")]
    code = (
        "import torch, ntkscope\n"
        "print(ntkscope.__file__)\n"
        "print(ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3)).trace('exact').value)\n"
        "from ntkscope import *\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for arguments, expected in (
        (["-c", code], f"{tmp_path / 'ntkscope' / '__init__.py'}\n12.0\n"),
        (["-m", "ntkscope", "--version"], f"ntkscope {ntkscope.__version__} (torch"),
    ):
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert process.stdout.startswith(expected)


def test_what_the_package_index_is_told(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        data = email.message_from_bytes(archive.read(path))
    assert data["Version"] == ntkscope.__version__ == PROJECT["version"]
    assert data["License-Expression"] == "MIT"
    description = data.get_payload()
    assert isinstance(description, str)
    assert "# ntkscope" in description
    # Nothing leads to a file that is not there.
    assert RELATIVE.findall(description) == []


def test_links_are_whole_where_the_project_has_a_home() -> None:
    pytest.importorskip("hatchling")
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "A\n\n![demo](docs/demo.png)\n\n[page](docs/a.md), [out](https://x.org/a), [here](#b).\n"
    assert module.whole(text, "") == "A\n\npage, [out](https://x.org/a), [here](#b).\n"
    home = module.whole(text, "https://example.org/p/")
    assert "![demo](https://example.org/p/raw/main/docs/demo.png)" in home
    assert "[page](https://example.org/p/blob/main/docs/a.md), [out](https://x.org/a), [here](#b)." in home
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert RELATIVE.search(readme)
    assert RELATIVE.findall(module.whole(readme, "")) == []
    assert RELATIVE.findall(module.whole(readme, "https://example.org/p")) == []


def test_classifiers_name_pythons_that_are_allowed() -> None:
    lowest = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    named = re.findall(r"Python :: (\d)\.(\d+)", "\n".join(PROJECT["classifiers"]))
    assert named
    assert all(tuple(map(int, version)) >= lowest for version in named)


def test_the_citation_is_of_this_version() -> None:
    yaml = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {ntkscope.__version__}\n" in yaml
    for field in ("cff-version", "message", "title", "authors", "license"):
        assert re.search(rf"^{field}: ?", yaml, re.MULTILINE)
    assert "arXiv:2511.10796" in yaml
