"""CONTRIBUTING.md is true: what it shows is applied to a copy of the source, and works there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LONGEST = 110


def _diffs() -> list[tuple[str, str, list[list[str]]]]:
    """(old path, new path, hunks) of every file that the page changes, in order."""
    found: list[tuple[str, str, list[list[str]]]] = []
    for block in re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^(?=--- )", block, flags=re.MULTILINE)[1:]:
            old, new, *lines = part.splitlines()
            hunks = re.split(r"^@@\n", "".join(f"{line}\n" for line in lines), flags=re.MULTILINE)[1:]
            found.append((old[4:], new[4:], [hunk.splitlines() for hunk in hunks]))
    return found


def _apply(root: Path) -> None:
    for old, new, hunks in _diffs():
        path = root / new.removeprefix("b/")
        text = "" if old == "/dev/null" else path.read_text(encoding="utf-8")
        for hunk in hunks:
            before = "".join(f"{line[1:]}\n" for line in hunk if not line.startswith("+"))
            after = "".join(f"{line[1:]}\n" for line in hunk if not line.startswith("-"))
            assert old == "/dev/null" or text.count(before) == 1, f"{new}: {before}"
            text = after if old == "/dev/null" else text.replace(before, after)
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with everything that the page adds."""
    root = tmp_path_factory.mktemp("copy")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", root)
    _apply(root)
    engine = root / "src" / "ntkscope" / "engines" / "numpy"
    engine.mkdir()
    (engine / "__init__.py").write_text('"""Layers in NumPy."""\n')
    shutil.copy(root / "tests" / "linear_engine.py", engine / "kernel.py")
    return root


SCRIPT = """
import numpy as np, scipy.sparse, torch
from ntkscope import NTK, estimators, measure_all
from ntkscope.engines.numpy.kernel import Layer

torch.manual_seed(0)
def model():
    return torch.nn.Sequential(torch.nn.Conv1d(2, 3, 2), torch.nn.InstanceNorm1d(3, affine=True)).double()

x = torch.randn(4, 2, 6, dtype=torch.float64)
ntk = NTK(model(), x)
other = ntk.at(model())
K, L = ntk.to_dense(), other.to_dense()

# The metric.
truth = float((K * L).sum() / (L * L).sum())
assert abs(ntk.metric("projection", other, method="exact").value / truth - 1) < 1e-9
assert abs(ntk.measure([other], metrics=("projection",))["projection"][0].value / truth - 1) < 0.1

# The estimator.
for found, value in (
    (ntk.trace("signs", products=40), float(torch.trace(K))),
    (ntk.metric("projection", other, method="signs", products=60), truth),
    (estimators.frobenius_norm(K, "signs", products=40), float(K.norm())),
):
    low, high = found.interval(0.9999)
    assert found.method == "signs" and low < value < high, found
assert ntk.frobenius_norm("signs", rtol=0.4).converged
assert len(measure_all([ntk, other], "signs", products=40)) == 2

# The rule.
assert set(ntk.engine.samples().jacobian.graph.general) == set()

# The engine.
layer = NTK(Layer(np.eye(3)), np.ones((2, 3)))
assert type(layer.engine).__module__ == "ntkscope.engines.numpy.kernel"
assert layer.trace("exact").value == 18

# The data source.
rows = scipy.sparse.csr_matrix(np.eye(3))
assert NTK(torch.nn.Linear(3, 2, bias=False), rows).trace("exact").value == 6
"""


def _run(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "MYPYPATH": str(copy / "src")}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_everything_that_the_page_adds_works(copy: Path) -> None:
    _run(copy, "-W", "error", "-c", SCRIPT)


def test_the_tests_of_what_was_added_pass(copy: Path) -> None:
    chosen = ["tests/engines/rules/test_norms.py", "tests/test_imports.py", "tests/test_settings.py"]
    said = _run(
        copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "-k", "norm or imports or literal"
    )
    assert "passed" in said


def test_what_is_shown_is_in_form() -> None:
    kinds = {new.removeprefix("b/").split("/")[2] for _, new, _ in _diffs() if new.startswith("b/src")}
    assert kinds == {"metrics.py", "runs", "ways", "settings.py", "engines", "data.py"}
    for _, _, hunks in _diffs():
        assert hunks
        assert all(len(line) <= LONGEST + 1 for hunk in hunks for line in hunk)
        assert all(line[:1] in ("+", "-", " ") for hunk in hunks for line in hunk)


def test_files_that_are_named_exist() -> None:
    added = {"b/" + new for _, new, _ in _diffs()}
    for name in re.findall(r"`((?:src|tests|docs)/[\w/.]+)`", PAGE):
        assert (ROOT / name).exists() or name in added, name
