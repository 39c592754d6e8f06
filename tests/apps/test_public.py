"""The applications stand on the public API alone, as a user's program does."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ntkscope

APPS = Path(ntkscope.__file__).parent / "apps"
FILES = sorted(APPS.rglob("*.py"))

#: What applications may import besides each other: the package's public names, and these modules'.
PUBLIC = {
    "ntkscope.errors",
    "ntkscope.estimators",
    "ntkscope.files",
    "ntkscope.plots",
    "ntkscope.progress",
    "ntkscope.report",
    "ntkscope.results",
    "ntkscope.tracking",
    "ntkscope.words",
    # The paper's estimators draw the same signs for a seed as ours do.
    "ntkscope.operators.probes",
}

#: Until the methods have a public list, in one place.
EXCEPTIONS = {("options.py", "ntkscope.measure")}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _reached(tree: ast.AST) -> Iterator[str]:
    """Private attributes of anything but self and cls, by dot or by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "attrgetter"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if any(_is_private(part) for name in names for part in name.split(".")):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def _forbidden(tree: ast.AST, file: str) -> Iterator[str]:
    """Imports from the package that a user's program could not rely on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names):
                if name.split(".")[0] == "ntkscope" and name not in PUBLIC | {"ntkscope"}:
                    yield f"line {node.lineno}: import {name}"
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "ntkscope":
            module = str(node.module)
            for alias in node.names:
                full = f"{module}.{alias.name}"
                own = full.startswith("ntkscope.apps") and not _is_private(alias.name)
                listed = (
                    module in PUBLIC | {"ntkscope"} and alias.name in importlib.import_module(module).__all__
                )
                if not (own or listed or full in PUBLIC or (file, module) in EXCEPTIONS):
                    yield f"line {node.lineno}: {full}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(APPS)))
def test_applications_reach_for_nothing_private(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(_reached(tree)) == []
    assert list(_forbidden(tree, str(path.relative_to(APPS)))) == []


@pytest.mark.parametrize(
    "code", ["k._x", "a.b._x.c", "f()._x", "getattr(k, '_x')", "attrgetter('a._x')", "torch._C.f()"]
)
def test_what_is_private_is_found(code: str) -> None:
    assert len(list(_reached(ast.parse(code)))) == 1


@pytest.mark.parametrize("code", ["self._x", "cls._x", "_x", "k.x", "k.__class__", "getattr(k, 'x')"])
def test_what_is_ones_own_is_not(code: str) -> None:
    assert list(_reached(ast.parse(code))) == []


IMPORTS = {
    "from ntkscope import NTK, plots, report": 0,
    "from ntkscope.apps.cli import app": 0,
    "import ntkscope": 0,
    "from ntkscope.files import write_whole": 0,
    "from ntkscope.files import _replace": 1,
    "from ntkscope.apps.cli import _message": 1,
    "from ntkscope.ntk import NTK": 1,
    "from ntkscope.engines import torch": 1,
    "from ntkscope import measure": 1,
    "from ntkscope.measure import METHODS": 1,
    "import ntkscope.runs.drive": 1,
}


@pytest.mark.parametrize(("code", "count"), IMPORTS.items())
def test_what_may_be_imported(code: str, count: int) -> None:
    assert len(list(_forbidden(ast.parse(code), "x.py"))) == count
