"""Imports point one way and make no circle, and ``import ntkscope`` loads nothing that it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import ntkscope

ROOT = Path(ntkscope.__file__).parent

# The house from the ground up: a room may import the rooms before it, and itself. Rooms of one
# line know nothing of each other.
LAYERS: list[set[str]] = [
    {"errors", "results", "words"},
    {"settings", "files", "data", "interrupts", "picture"},
    {"journal"},
    {"operators", "progress"},
    {"runs"},
    {"metrics", "engines"},
    {"ways"},
    {"measure", "fingerprints", "parts"},
    {"variants"},
    {"verbs"},
    {"estimators", "ntk", "penalties"},
    {"tracking"},
    {"__init__"},
    {"report"},
    {"plots"},
    {"apps"},
    {"__main__"},
]

#: Rooms that know no framework: the linear algebra, and what is above the engines.
NO_TORCH = {"errors", "words", "results", "operators", "runs"}


def _imports(path: Path, root: Path = ROOT) -> set[str]:
    """Names of all modules of the package that a file imports, those for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                inner = root.parent / Path(*f"{node.module}.{alias.name}".split("."))
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                names.add(f"{node.module}.{alias.name}" if is_module else str(node.module))
    return names


def _name(path: Path, root: Path = ROOT) -> str:
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def _graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Which module imports which, within the package."""
    files = {_name(path, root): path for path in root.rglob("*.py")}
    graph = {}
    for name, path in files.items():
        found = {target for target in _imports(path, root) if target in files and target != name}
        # ``from ntkscope import measure_all`` in an application is an import of the public names.
        graph[name] = found
    return graph


def _circles(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The modules from which an import leads back to themselves."""

    def reaches(start: str) -> bool:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for target in graph[stack.pop()]:
                if target == start:
                    return True
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return False

    return sorted(name for name in graph if reaches(name))


def _room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_no_import_leads_in_a_circle() -> None:
    assert _circles(_graph()) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    root = tmp_path / "house"
    root.mkdir()
    (root / "a.py").write_text("from house import b\n")
    (root / "b.py").write_text("def f():\n    from house.c import x\n")
    (root / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a import y\n"
    )
    (root / "d.py").write_text("import torch.nn\nfrom house import a\n")
    assert _graph(root)["house.d"] == {"house.a"}
    assert _circles(_graph(root)) == ["house.a", "house.b", "house.c"]


def test_every_room_has_its_layer() -> None:
    rooms = {_room(name) for name in _graph()}
    assert rooms == set().union(*LAYERS)


@pytest.mark.parametrize("room", sorted(set().union(*LAYERS)))
def test_imports_point_one_way(room: str) -> None:
    floor = next(index for index, layer in enumerate(LAYERS) if room in layer)
    below = {room}.union(*LAYERS[:floor])
    for name, targets in _graph().items():
        if _room(name) == room:
            assert {_room(target) for target in targets} <= below, name


@pytest.mark.parametrize("room", sorted(NO_TORCH))
def test_the_linear_algebra_half_knows_no_framework(room: str) -> None:
    for path in ROOT.rglob("*.py"):
        if _room(_name(path)) == room:
            assert not {name for name in _imports(path) if name.split(".")[0] == "torch"}, path


def _loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_loads_nothing_optional() -> None:
    assert not _loaded_by("import ntkscope") & {"torch", "numpy"}
    loaded = _loaded_by("import ntkscope; ntkscope.NTK")
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
    if "torch._dynamo" in _loaded_by("import torch; torch.func.vmap(torch.sin)"):
        pytest.skip("this torch loads the compiler for vmap itself")
    loaded = _loaded_by(
        "import torch, ntkscope\n"
        "ntk = ntkscope.NTK(torch.nn.Linear(3, 2), torch.eye(3))\n"
        "ntk.trace(method='exact'); ntk.measure(method='exact'); ntk.trace(method='per-sample', products=3)"
    )
    assert "torch._dynamo" not in loaded


def test_every_public_name_exists_and_is_documented() -> None:
    for name in ntkscope.__all__:
        assert getattr(ntkscope, name).__doc__
