"""Imports point one way, and ``import ntkscope`` loads nothing that it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ntkscope

ROOT = Path(ntkscope.__file__).parent

# What each part may import of the others, besides itself.
ALLOWED: dict[str, set[str]] = {
    "student": set(),
    "estimate": {"student"},
    "probes": set(),
    "estimators": {"estimate", "probes", "student"},
    "jacobian": set(),
    "maps": {"estimate", "estimators", "jacobian", "probes"},
    "planner": set(),
    "progress": {"estimate"},
    "routes": {"estimate", "estimators", "jacobian", "maps", "planner", "probes", "progress"},
    "ntk": {"estimate", "estimators", "jacobian", "maps", "planner", "routes"},
}
FRAMEWORKS = {"estimators": {"torch"}, "planner": set(), "estimate": {"torch"}, "probes": {"torch"}}


def _imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, but for type checkers."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _files(part: str) -> list[Path]:
    folder = ROOT / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{part}.py"]


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part: str) -> None:
    for path in _files(part):
        own = {name.split(".")[1] for name in _imports(path) if name.startswith("ntkscope.")}
        assert own - {part} <= ALLOWED[part], path


@pytest.mark.parametrize("part", ["estimators", "estimate", "probes", "student"])
def test_the_linear_algebra_half_knows_no_framework(part: str) -> None:
    for path in _files(part):
        assert not {name for name in _imports(path) if name.split(".")[0] == "torch"}, path


def test_only_the_command_line_imports_the_command_line() -> None:
    front = {"cli", "plots", "demo"}
    for path in ROOT.rglob("*.py"):
        if _part(path) in ALLOWED or path.name == "__init__.py":
            own = {name.split(".")[1] for name in _imports(path) if name.startswith("ntkscope.")}
            assert not own & front, path


def test_the_check_sees_an_import(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text("def f():\n    from ntkscope.jacobian import state\n    import torch.nn\n")
    assert _imports(path) == {"ntkscope.jacobian.state", "torch.nn"}


def _loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_loads_nothing_optional() -> None:
    loaded = _loaded_by("import ntkscope")
    assert "ntkscope.ntk" in loaded
    assert not loaded & {
        "matplotlib",
        "scipy",
        "rich",
        "typer",
        "safetensors",
        "torch._dynamo",
        "mlxtend",
        "pandas",
    }


def test_measuring_does_not_load_the_compiler() -> None:
    loaded = _loaded_by(
        "import torch, ntkscope\n"
        "ntk = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))\n"
        "ntk.trace(method='exact'); ntk.measure(method='exact'); ntk.trace(method='per-sample', products=3)"
    )
    assert "torch._dynamo" not in loaded
    assert "scipy" not in loaded


def test_every_public_name_exists_and_is_documented() -> None:
    for name in ntkscope.__all__:
        assert getattr(ntkscope, name).__doc__
